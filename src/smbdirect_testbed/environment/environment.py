"""An environment that is up, as a value: everything that a scenario can use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from smbdirect_testbed.carriers.carrier import Kernel
from smbdirect_testbed.config.spec import EnvironmentSpec, Role, ServerKind
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.lib.background import Background
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.machine.host import Host
from smbdirect_testbed.machine.kernel_log import KernelLog
from smbdirect_testbed.machine.loaded_driver import LoadedDriver
from smbdirect_testbed.machine.machine import Machine
from smbdirect_testbed.smb.server import SmbServer


@dataclass(frozen=True)
class Environment:
    """An environment that is up: its machines, hosts, links and servers.

    ::

        for host in environment.hosts.values():
            host.run(["rdma", "link", "show"])

    :param kernel: the machines' kernel, if it is not the image's own
    :param machines: by name; drivers and kernel logs are by the name of their machine
    :param directory: the instance's state directory
    :param starting: the servers that run from the start; each starts in the background
    """

    spec: EnvironmentSpec
    image: Image
    kernel: Kernel | None
    machines: Mapping[str, Machine]
    drivers: Mapping[str, LoadedDriver]
    hosts: Mapping[str, Host]
    kernel_logs: Mapping[str, KernelLog]
    directory: Path
    starting: dict[ServerKind, Background[SmbServer]] = field(default_factory=dict)

    @property
    def machine(self) -> Machine:
        """The machine that smbd is on, or the first."""
        return self.machines[self._main]

    @property
    def driver(self) -> LoadedDriver:
        """The driver in that machine."""
        return self.drivers[self._main]

    @property
    def _main(self) -> str:
        smbd = (s.host for s in self.spec.servers if s.kind is ServerKind.SMBD)
        return self.spec.host(next(smbd, self.spec.hosts[0].name)).machine

    def death(self) -> str | None:
        """Why one of the machines no longer runs; None while all do."""
        for name, machine in self.machines.items():
            if reason := machine.death():
                return reason if len(self.machines) == 1 else f"machine {name}: {reason}"
        return None

    def condemn(self, reason: str) -> None:
        """Declare all machines dead and kill them; see :meth:`Machine.condemn`."""
        for machine in self.machines.values():
            machine.condemn(reason)

    def check(self) -> None:
        """Check that the machines answer, the driver is loaded and the servers run.

        :raises MachineDied: a machine does not run
        :raises ProvisionError: something else changed since it was provided
        """
        for name, machine in self.machines.items():
            machine.raise_if_dead()
            self.drivers[name].check()
        for server in self.servers():
            server.check()

    def host(self, role: Role) -> Host:
        """The first host with a role.

        :raises ProvisionError: no host has it
        """
        for host in self.hosts.values():
            if host.role is role:
                return host
        raise ProvisionError(f"environment {self.spec.name} has no host with role {role}")

    def host_of(self, kind: ServerKind) -> Host | None:
        """The host that the environment gives to a server, if it has that server."""
        for server in self.spec.servers:
            if server.kind is kind:
                return self.hosts[server.host]
        return None

    def server(self, kind: ServerKind) -> SmbServer | None:
        """A server that runs from the start, if there is one; waits until it does.

        :raises ProvisionError: it did not start, with the end of its log
        """
        starting = self.starting.get(kind)
        return starting.value() if starting else None

    def wait_for_servers(self) -> None:
        """Wait until all servers from the start run; raises as :meth:`server` does."""
        for kind in self.starting:
            self.server(kind)

    def servers_start(self) -> bool:
        """Whether a server from the start is still starting."""
        return len(self.servers()) < len(self.starting)

    def servers(self) -> list[SmbServer]:
        """The servers from the start that run by now."""
        return [server for s in self.starting.values() if (server := s.done())]

    def facts(self) -> dict[str, str]:
        """Facts about the environment for the results: names and values."""
        return {
            "environment": self.spec.name,
            "carrier": self.spec.carrier.value,
            "accelerator": self.machine.accelerator,
            **joined_facts({name: m.provenance for name, m in self.machines.items()}),
            "kernel": self.kernel.release if self.kernel else self.image.kernel_release,
            "kernel_options": " ".join(self.spec.machine.kernel_options),
            "image": self.image.name,
            "image_digest": self.image.digest,
            "samba": self.image.packages.get("samba", "none"),
            "rdma_core": self.image.packages.get("rdma-core", "none"),
            "driver_source": self.driver.built.source,
            "driver_version": self.driver.built.version,
            "driver_digest": self.driver.built.digest,
            "packages_digest": _packages_digest(self.image),
        }


def _packages_digest(image: Image) -> str:
    """Identifies the list of an image's packages with their versions."""
    packages = sorted(f"{name} {version}\n" for name, version in image.packages.items())
    return hashlib.sha256("".join(packages).encode()).hexdigest()


def joined_facts(facts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Facts of several machines in one table; equal values appear once."""
    joined = {}
    for key in {key: None for of_machine in facts.values() for key in of_machine}:
        values = {name: of_machine.get(key, "") for name, of_machine in facts.items()}
        if len(set(values.values())) == 1:
            joined[key] = next(iter(values.values()))
        else:
            joined[key] = ", ".join(f"{name}: {value or 'none'}" for name, value in values.items())
    return joined
