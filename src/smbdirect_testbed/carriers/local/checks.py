"""The requirements of the carrier ``local``; if one is missing, one line says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Self

import psutil

from smbdirect_testbed.carriers.local.modules import DRIVER, NEEDED
from smbdirect_testbed.carriers.local.provide import raise_if_up
from smbdirect_testbed.config.ports import PORTS
from smbdirect_testbed.config.spec import DriverOrigin, EnvironmentSpec, ServerKind, Stack
from smbdirect_testbed.kernel.running import LoadedModule, RunningKernel, loaded_modules
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.machine.host import HostEnd
from smbdirect_testbed.machine.topology import planned_link

Network = IPv4Network | IPv6Network

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_MODULE": 16, "CAP_SYS_ADMIN": 21}
"""Bits, of linux/capability.h."""
_PROGRAMS = ("mke2fs", "mount", "nsenter", "unshare")
_FILESYSTEMS = ("cgroup2", "devtmpfs")
_ALL_IDS = ["0", "0", "4294967295"]
_SYS = "/sys"
_OFF, _ON = ("N", "0"), ("Y", "1")
_LOCKED_DOWN = ("integrity", "confidentiality")


@dataclass(frozen=True)
class ThisComputer:
    """The findings on this computer.

    :param capabilities: the effective ones, as bits
    :param first_user_namespace: root is the computer's root, not only a container's
    :param signed_only: the kernel loads only modules with a signature that it knows
    :param loaded: modules by name
    :param rdma_shared: RDMA links are seen from all network namespaces
    :param rdma_links: names of the existing ones
    :param networks: those of its addresses, by interface
    :param listening: TCP ports that something listens on
    """

    root: bool
    capabilities: int
    first_user_namespace: bool
    programs: frozenset[str]
    filesystems: frozenset[str]
    ipv6: bool
    signed_only: bool
    loaded: Mapping[str, LoadedModule]
    rdma_shared: bool
    rdma_links: frozenset[str]
    networks: Mapping[str, tuple[Network, ...]]
    listening: frozenset[int]

    @classmethod
    def look(cls) -> Self:
        """Look at everything."""
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        status = dict(line.split(":", 1) for line in _read("/proc/self/status").splitlines())
        root = os.geteuid() == 0
        return cls(
            root=root,
            capabilities=int(status.get("CapEff", "0"), 16),
            first_user_namespace=_read("/proc/self/uid_map").split() == _ALL_IDS,
            programs=frozenset(p for p in _PROGRAMS if shutil.which(p, path=path)),
            filesystems=frozenset(
                line.split()[-1] for line in _read("/proc/filesystems").splitlines()
            ),
            ipv6=bool(_read("/proc/net/if_inet6")),
            signed_only=_read(f"{_SYS}/module/module/parameters/sig_enforce").strip() in _ON
            or any(f"[{m}]" in _read(f"{_SYS}/kernel/security/lockdown") for m in _LOCKED_DOWN),
            loaded=loaded_modules(),
            rdma_shared=_read(f"{_SYS}/module/ib_core/parameters/netns_mode").strip() not in _OFF,
            rdma_links=frozenset(p.name for p in Path(f"{_SYS}/class/infiniband").glob("*")),
            networks={
                name: tuple(n for a in addresses if (n := _network_of(a.address, str(a.netmask))))
                for name, addresses in psutil.net_if_addrs().items()
            },
            listening=frozenset(
                c.laddr.port
                for c in (psutil.net_connections("tcp") if root else ())
                if c.status == psutil.CONN_LISTEN and c.laddr
            ),
        )


@dataclass(frozen=True)
class Objection:
    """A reason against it, and the remedy: a line each."""

    problem: str
    hint: str


def require_computer(spec: EnvironmentSpec, kernel: RunningKernel) -> None:
    """Raise ProvisionError unless an environment is possible on this computer's kernel."""
    for objection in objections(spec, kernel, ThisComputer.look()):
        raise ProvisionError(f"carrier local: {objection.problem}", hint=objection.hint)
    raise_if_up()


def objections(
    spec: EnvironmentSpec, kernel: RunningKernel, here: ThisComputer
) -> Iterator[Objection]:
    """All obstacles, the gravest first."""
    yield from _privileges(here)
    yield from _modules(spec, kernel)
    installed = spec.driver.origin is DriverOrigin.INSTALLED
    if here.signed_only and not (installed and kernel.file("smbdirect_socket")):
        yield Objection(
            "this kernel takes signed modules only, and what is built here is not signed",
            "have all of the driver installed, or switch off secure boot and module.sig_enforce",
        )
    yield from _others(spec, here)
    if spec.shares_network:
        yield from _network(spec, here)
    if any(server.kind is ServerKind.KSMBD for server in spec.servers):
        # ksmbd looks up a share's path in the root of the computer's first process.
        yield Objection(
            "ksmbd serves files of the computer's own root file system, which is not the machine's",
            "leave ksmbd out of the environment, or use another carrier for it",
        )


def _privileges(here: ThisComputer) -> Iterator[Objection]:
    if not here.root:
        yield Objection(
            "it makes namespaces and loads modules on this very computer, which only root may",
            "run it as root, on a computer that is there for that",
        )
    lacking = [n for n, bit in _CAPABILITIES.items() if not here.capabilities >> bit & 1]
    if lacking:
        yield Objection(
            f"root has no {', '.join(lacking)} here, as in a container",
            "run it outside of containers, or in one with all privileges",
        )
    if not here.first_user_namespace:
        yield Objection(
            "root is that of a user namespace, and may not load modules",
            "run it as the computer's own root",
        )
    for program in _PROGRAMS:
        if program not in here.programs:
            yield Objection(
                f"there is no program {program}",
                "install the packages util-linux, mount and e2fsprogs",
            )
    for kind in _FILESYSTEMS:
        if kind not in here.filesystems:
            yield Objection(f"the kernel has no {kind}", "use a kernel that has it")
    if not here.ipv6:
        yield Objection(
            "IPv6 is off on this computer, and soft-RDMA devices need it",
            "boot without ipv6.disable=1",
        )


def _modules(spec: EnvironmentSpec, kernel: RunningKernel) -> Iterator[Objection]:
    if not kernel.modules.is_dir():
        yield Objection(
            f"there are no modules for the running kernel {kernel.release}: "
            f"no directory {kernel.modules}",
            "install the running kernel's modules, or boot the kernel whose modules are installed",
        )
        return
    rdma = {end.rdma.traits.module for link in spec.links for end in link.ends if end.rdma}
    shaped = any(link.delay or link.loss for link in spec.links)
    for name in (*NEEDED, *sorted(rdma - set(DRIVER)), *(["sch_netem"] if shaped else [])):
        if not kernel.has(name):
            yield Objection(
                f"the running kernel {kernel.release} has no module {name}",
                "install the package with all of its modules, or build it with that one",
            )
    if spec.driver.origin is DriverOrigin.INSTALLED:
        yield from _installed_driver(spec, kernel, rdma)


def _installed_driver(
    spec: EnvironmentSpec, kernel: RunningKernel, rdma: set[str]
) -> Iterator[Objection]:
    needed = ["smbdirect", "cifs", *sorted(rdma & set(DRIVER))]
    for name in needed:
        if not kernel.file(name):
            yield Objection(
                f"the driver is not installed: there is no {name}.ko for kernel {kernel.release}",
                "install it, or have it built: run ENV --driver DIR with a kernel tree",
            )
    if not kernel.file("smbdirect_socket") and not kernel.headers:
        yield Objection(
            f"there is nothing to build the socket module against: no {kernel.modules}/build",
            "install the running kernel's headers, or smbdirect_socket.ko with the driver",
        )


def _others(spec: EnvironmentSpec, here: ThisComputer) -> Iterator[Objection]:
    for name in DRIVER:
        if not (module := here.loaded.get(name)):
            continue
        if module.users > len([m for m in module.modules if m in DRIVER]):
            yield Objection(
                f"module {name}, which is part of the driver, is in use on this computer",
                "end what uses it (mounts of type cifs, ksmbd, SMB-Direct sockets, siw devices)",
            )
        elif spec.driver.origin is not DriverOrigin.INSTALLED:
            yield Objection(
                f"module {name} is loaded already, and would be in the way of the one to test",
                f"unload it: modprobe --remove {name}",
            )
    if not here.rdma_shared:
        yield Objection(
            "RDMA devices are confined to their network namespaces here",
            "rdma system set netns shared",
        )
    for host, link in _ends(spec):
        if link.rdma_device in here.rdma_links:
            yield Objection(
                f"there is an RDMA link {link.rdma_device} already, as host {host} is to get",
                f"remove it: rdma link delete {link.rdma_device}",
            )


def _network(spec: EnvironmentSpec, here: ThisComputer) -> Iterator[Objection]:
    """Conflicts of a host that is this computer's own network stack."""
    own = next(h.name for h in spec.hosts if h.stack is Stack.MACHINE)
    for host, end in _ends(spec):
        if host != own:
            continue
        if end.device in here.networks:
            yield Objection(
                f"there is an interface {end.device} already, as host {host} is to get",
                f"remove or rename it: ip link delete {end.device}",
            )
        for wanted in (end.ipv4.network, end.ipv6.network):
            for device, networks in here.networks.items():
                if any(n.version == wanted.version and n.overlaps(wanted) for n in networks):
                    yield Objection(
                        f"host {host} is to have an address in {wanted}, "
                        f"which is where {device} of this computer is",
                        "give the links other addresses, in a copy of the environment's file",
                    )
    for server in spec.servers:
        ports = {PORTS[t] for t in server.transports} if server.host == own else set()
        for port in sorted(ports & here.listening):
            yield Objection(
                f"TCP port {port}, on which {server.kind} is to listen, is in use on this computer",
                f"end what listens there: ss -ltnp sport = :{port}",
            )


def _ends(spec: EnvironmentSpec) -> Iterator[tuple[str, HostEnd]]:
    for number, link in enumerate(spec.links):
        yield from planned_link(number, link).items()


def _network_of(address: str, netmask: str) -> Network | None:
    """The network of an interface's address; None for other kinds of addresses."""
    try:
        length = f"{int(ip_address(netmask)):b}".count("1")
        return ip_network(f"{address.partition('%')[0]}/{length}", strict=False)
    except ValueError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
