"""Specs: the content of environment files as values.

All specs are frozen and are validated when they are made. :mod:`smbdirect_testbed.config.envfile`
reads them from TOML and turns pydantic's errors into lines for the user.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from smbdirect_testbed.config.kinds import CarrierKind as CarrierKind
from smbdirect_testbed.config.kinds import ServerKind as ServerKind
from smbdirect_testbed.config.rdma import RdmaType as RdmaType
from smbdirect_testbed.lib import paths

_STRICT = ConfigDict(extra="forbid")

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,11}$")]
"""A host's or link's name: short enough to be part of an interface name (15 bytes)."""


class Transport(StrEnum):
    """How SMB travels between a client and a server.

    ::

        smbclient.run("ls", transports=[Transport.SMBDIRECT, Transport.TCP])
        wire.expect(Transport.SMBDIRECT)
    """

    TCP = "tcp"
    NBT = "nbt"
    SMBDIRECT = "smbdirect"


class Role(StrEnum):
    """What a host is for.

    ::

        monitor = environment.host(Role.MONITOR)
        clients = [h for h in environment.hosts.values() if h.role is Role.CLIENT]
    """

    SERVER = "server"
    CLIENT = "client"
    MONITOR = "monitor"


class Stack(StrEnum):
    """The network stack that a host has: a namespace of its own, or the machine's own.

    ksmbd listens in the machine's own stack only, and so do kernel users of siw.
    """

    NAMESPACE = "namespace"
    MACHINE = "machine"


class DriverOrigin(StrEnum):
    """The origin of the driver's source; ``installed`` means modules that are already built."""

    DISTRIBUTION = "distribution"
    TREE = "tree"
    GIT = "git"
    INSTALLED = "installed"


@dataclass(frozen=True, config=_STRICT)
class MachineSpec:
    """The size of a machine.

    :param memory: MiB of RAM
    :param ssh_port: a fixed loopback port for the machine's ssh; 0 takes a free one
    :param kernel_options: extra kernel command line options; they change the kernel under test
        and are recorded with the results
    :param cold: boot it even if it could be cloned from a template
    """

    cpus: Annotated[int, Field(ge=1, le=64)] = 2
    memory: Annotated[int, Field(ge=512, le=65536)] = 2048
    ssh_port: Annotated[int, Field(ge=0, le=65535)] = 0
    kernel_options: tuple[str, ...] = ()
    cold: bool = False


@dataclass(frozen=True, config=_STRICT)
class DriverSpec:
    """Where smbdirect.ko, cifs.ko, ksmbd.ko and siw.ko are built from.

    :param path: a kernel tree, or a part of one that holds ``fs/smb`` (origin ``tree``); absolute
        once it is here
    :param url: a git repository with a kernel tree (origin ``git``)
    :param commit: the full commit id in it (origin ``git``)
    """

    origin: DriverOrigin = DriverOrigin.DISTRIBUTION
    path: Annotated[Path, AfterValidator(paths.absolute)] | None = None
    url: str | None = None
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        needed = {
            DriverOrigin.DISTRIBUTION: set[str](),
            DriverOrigin.TREE: {"path"},
            DriverOrigin.GIT: {"url", "commit"},
            DriverOrigin.INSTALLED: set[str](),
        }[self.origin]
        given = {k for k in ("path", "url", "commit") if getattr(self, k) is not None}
        if missing := needed - given:
            raise ValueError(f"origin {self.origin!s} needs {' and '.join(sorted(missing))}")
        if surplus := given - needed:
            raise ValueError(
                f"{' and '.join(sorted(surplus))} do not go with origin {self.origin!s}"
            )
        return self


@dataclass(frozen=True, config=_STRICT)
class KernelSpec:
    """Which kernel is built for the carrier ``uml``.

    :param config: options on top of the usual ones: the name of a file
        ``vm-images/uml/NAME.config``; "" for none
    """

    config: str = ""


@dataclass(frozen=True, config=_STRICT)
class HostSpec:
    """A network stack with a role.

    :param machine: its machine; hosts with the same name here share a machine
    """

    name: Name
    role: Role
    stack: Stack = Stack.NAMESPACE
    machine: Name = "machine"


@dataclass(frozen=True, config=_STRICT)
class LinkEnd:
    """One host's end of a link.

    :param rdma: the type of the RDMA link on this end's interface; None for none
    """

    host: str
    ipv4: IPv4Interface
    ipv6: IPv6Interface
    rdma: RdmaType | None = None


@dataclass(frozen=True, config=_STRICT)
class LinkSpec:
    """A connection between two hosts, as Ethernet has it.

    ::

        for link in environment.spec.links:
            here, there = (environment.hosts[end.host] for end in link.ends)

    :param mtu: bytes; an rxe link takes the largest RoCE MTU (1024, 2048, 4096) that fits
    :param neighbours: set permanent neighbour entries; without them a first RDMA connection can
        take the 5 s of rdma_cm's address time-out
    :param delay: additional milliseconds for each packet, in each direction
    :param loss: per cent of the packets that are lost, in each direction
    """

    ends: tuple[LinkEnd, LinkEnd]
    mtu: Annotated[int, Field(ge=1280, le=65535)] = 1500
    neighbours: bool = True
    delay: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    loss: Annotated[float, Field(ge=0, lt=100)] = 0.0


@dataclass(frozen=True, config=_STRICT)
class ServerSpec:
    """An SMB server that a host runs; smbd from the start, ksmbd when a scenario asks for it.

    :param transports: what it listens on
    """

    kind: ServerKind
    host: str
    transports: tuple[Transport, ...] = (Transport.TCP, Transport.NBT, Transport.SMBDIRECT)


@dataclass(frozen=True, config=_STRICT)
class EnvironmentSpec:
    """One environment: the content of a file in ``envs/``.

    ::

        spec = load_environment("rxe")
        assert spec.carrier is CarrierKind.VM

    :param name: the file's name without ``.toml``
    :param image: the name of a recipe in ``vm-images/``
    """

    name: str
    description: str
    carrier: CarrierKind
    image: str
    hosts: tuple[HostSpec, ...]
    links: tuple[LinkSpec, ...]
    servers: tuple[ServerSpec, ...] = ()
    machine: MachineSpec = Field(default_factory=MachineSpec)
    driver: DriverSpec = Field(default_factory=DriverSpec)
    kernel: KernelSpec = Field(default_factory=KernelSpec)

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [h.name for h in self.hosts]
        if not names:
            raise ValueError("hosts: at least one host is needed")
        _no_repeats(names, "hosts: two hosts are named {}")
        _no_repeats(
            (h.machine for h in self.hosts if h.stack is Stack.MACHINE),
            "hosts: only one host can have the own stack of machine {}",
        )
        ends = [end for link in self.links for end in link.ends]
        for end in ends:
            if end.host not in names:
                raise ValueError(
                    f"links: there is no host {end.host} (hosts are {', '.join(names)})"
                )
        _no_repeats((e.ipv4.ip for e in ends), "links: two ends have the address {}")
        _no_repeats((e.ipv6.ip for e in ends), "links: two ends have the address {}")
        for link in self.links:
            a, b = link.ends
            if a.host == b.host:
                raise ValueError(f"links: both ends are on host {a.host}")
            if a.ipv4.network != b.ipv4.network or a.ipv6.network != b.ipv6.network:
                raise ValueError(f"links: {a.host} and {b.host} are not in one network")
        for server in self.servers:
            if server.host not in names:
                raise ValueError(
                    f"servers: there is no host {server.host} (hosts are {', '.join(names)})"
                )
        return self

    @property
    def shares_network(self) -> bool:
        """Whether a host is its machine's own network stack: with carrier local, the computer's."""
        return any(h.stack is Stack.MACHINE for h in self.hosts)

    @property
    def machines(self) -> tuple[str, ...]:
        """The names of its machines, in the order in which hosts name them."""
        return tuple(dict.fromkeys(h.machine for h in self.hosts))

    def crosses(self, link: LinkSpec) -> bool:
        """Whether a link joins two machines."""
        return len({self.host(end.host).machine for end in link.ends}) > 1

    def part_on(self, machine: str) -> EnvironmentSpec:
        """The part of the spec on one machine: its hosts, and the links between them."""
        hosts = tuple(h for h in self.hosts if h.machine == machine)
        names = {h.name for h in hosts}
        return replace(
            self,
            hosts=hosts,
            links=tuple(k for k in self.links if {e.host for e in k.ends} <= names),
            servers=tuple(s for s in self.servers if s.host in names),
        )

    def host(self, name: str) -> HostSpec:
        """The host of that name."""
        return next(h for h in self.hosts if h.name == name)


def _no_repeats(values: Iterable[object], message: str) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise ValueError(message.format(value))
