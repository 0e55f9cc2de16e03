"""An environment, provided: from a spec to running servers, and back in the opposite order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from smbdirect_testbed.agent_client import running_agent
from smbdirect_testbed.ahead import made_ahead
from smbdirect_testbed.capture import captured_host, start_capture
from smbdirect_testbed.carriers.machines import machine_directory, started_machine
from smbdirect_testbed.carriers.wires import wires_between_machines
from smbdirect_testbed.driver.build import provide_driver
from smbdirect_testbed.driver.manifest import BuiltDriver
from smbdirect_testbed.early import Early
from smbdirect_testbed.errors import ProvisionError
from smbdirect_testbed.host import Host
from smbdirect_testbed.image import Image, provide_image
from smbdirect_testbed.kernel_log import KernelLog
from smbdirect_testbed.loaded_driver import LoadedDriver
from smbdirect_testbed.machine import Machine
from smbdirect_testbed.prepared import template_plan
from smbdirect_testbed.progress import Progress
from smbdirect_testbed.running_kernel import RunningKernel
from smbdirect_testbed.smb.server import SmbServer
from smbdirect_testbed.smb.smbd import Smbd, known_transports, running_smbd
from smbdirect_testbed.smb.transports import SambaTransports
from smbdirect_testbed.spec import CarrierKind, EnvironmentSpec, Role, ServerKind, Transport
from smbdirect_testbed.together import enter_together
from smbdirect_testbed.topology import Place, made_hosts
from smbdirect_testbed.uml_kernel import UmlKernel
from smbdirect_testbed.uml_tree import provide_kernel

Kernel = UmlKernel | RunningKernel
"""A kernel that is not the image's own."""

_kept: list[ExitStack] = []
"""What is left running for later commands.

Collecting one of these stacks would undo it, so the command line ends by ``os._exit`` when there
is one.
"""


def anything_kept() -> bool:
    """Whether this process provided an environment that is to outlive it."""
    return bool(_kept)


@dataclass(frozen=True)
class Environment:
    """Everything that a scenario can use.

    :param kernel: the machines' kernel, if it is not the image's own
    :param machines: by name, and so are the drivers and the kernel logs that they have
    :param directory: the instance's state directory
    :param early_servers: those that run from the start, as soon as they do
    """

    spec: EnvironmentSpec
    image: Image
    kernel: Kernel | None
    machines: Mapping[str, Machine]
    drivers: Mapping[str, LoadedDriver]
    hosts: Mapping[str, Host]
    kernel_logs: Mapping[str, KernelLog]
    directory: Path
    early_servers: dict[ServerKind, Early[Smbd]] = field(default_factory=dict)

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
        early = self.early_servers.get(kind)
        return early.value() if early else None

    def wait_for_servers(self) -> None:
        """Wait until all servers from the start run; raises as :meth:`server` does."""
        for kind in self.early_servers:
            self.server(kind)

    def servers(self) -> list[SmbServer]:
        """The servers from the start that run by now."""
        return [server for early in self.early_servers.values() if (server := early.done())]

    def facts(self) -> dict[str, str]:
        """What the results say of the environment: what ran on what."""
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
        }


def joined_facts(facts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Facts about machines, by the machine's name: as of one where they are the same."""
    joined = {}
    for key in {key: None for of_machine in facts.values() for key in of_machine}:
        values = {name: of_machine.get(key, "") for name, of_machine in facts.items()}
        if len(set(values.values())) == 1:
            joined[key] = next(iter(values.values()))
        else:
            joined[key] = ", ".join(f"{name}: {value or 'none'}" for name, value in values.items())
    return joined


@contextmanager
def provide(
    spec: EnvironmentSpec,
    progress: Progress,
    directory: Path,
    *,
    keep: bool = False,
    watched: bool = False,
) -> Iterator[Environment]:
    """Provide an environment; on exit undo it all, unless ``keep`` and it got ready.

    :param directory: the instance's state directory; exists, empty
    :param watched: scenarios are going to run in it: what a capture needs is started, and they
        may begin while servers start, whose failure is told to whoever asks for them
    :raises UsageError: the spec asks for something that is not there
    :raises ProvisionError: a step failed
    """
    with ExitStack() as stack:
        started = stack.enter_context(started_machines(spec, progress, directory, keep=keep))
        machines = started.machines
        # What only waits for a machine is done at the same time as other things that do.
        pool = stack.enter_context(ThreadPoolExecutor())
        places = {
            name: Place(machine, stack.enter_context(running_agent(machine)))
            for name, machine in machines.items()
        }
        drivers = {
            name: LoadedDriver(machine, started.driver) for name, machine in machines.items()
        }
        loading = pool.submit(_load, list(drivers.values()), progress)
        smbds = [server for server in spec.servers if server.kind is ServerKind.SMBD]
        samba = {
            name: pool.submit(
                known_transports, started.image, machines[name], drivers[name], progress
            )
            for name in {spec.host(server.host).machine for server in smbds}
        }
        capture: Future[None] | None = None

        def begin_capture(hosts: Mapping[str, Host]) -> None:
            nonlocal capture
            if watched and (client := captured_host(hosts)):
                capture = pool.submit(start_capture, client)

        with progress.phase("hosts", f"making hosts {', '.join(h.name for h in spec.hosts)}"):
            made = made_hosts(
                spec, places, keep=keep, before_links=begin_capture, before_rdma=loading.result
            )
            hosts = stack.enter_context(made)
        logs = {name: KernelLog(machine) for name, machine in machines.items()}
        environment = Environment(
            spec, started.image, started.kernel, machines, drivers, hosts, logs, directory
        )
        for server in smbds:
            host = hosts[server.host]
            starting = _started_smbd(host, samba[host.machine.name], server.transports, progress)
            environment.early_servers[server.kind] = stack.enter_context(Early(starting))
        if capture:
            capture.result()
        if not watched:
            environment.wait_for_servers()
        yield environment
        if keep and not environment.death():
            environment.wait_for_servers()
            _kept.append(stack.pop_all())


@contextmanager
def _started_smbd(
    host: Host,
    samba: Future[SambaTransports],
    transports: Sequence[Transport],
    progress: Progress,
) -> Iterator[Smbd]:
    with ExitStack() as stack:
        with progress.phase("servers", "starting smbd"):
            smbd = stack.enter_context(running_smbd(host, samba.result(), transports))
        yield smbd


def _load(drivers: Sequence[LoadedDriver], progress: Progress) -> None:
    with progress.phase("driver_load", "loading the driver"), ThreadPoolExecutor() as pool:
        for _ in pool.map(LoadedDriver.load, drivers):
            pass


@dataclass(frozen=True)
class StartedMachines:
    """Machines, and what they were started from.

    :param kernel: the machines' kernel, if it is not the image's own
    :param driver: to be loaded
    """

    image: Image
    kernel: Kernel | None
    driver: BuiltDriver
    machines: Mapping[str, Machine]


def require_possible(spec: EnvironmentSpec) -> None:
    """Look whether this computer permits an environment, at the cost of nothing.

    :raises ProvisionError: it does not
    """
    if spec.carrier is CarrierKind.LOCAL:
        from smbdirect_testbed.carriers.local_checks import require_computer

        require_computer(spec, RunningKernel())


def provide_parts(
    spec: EnvironmentSpec, progress: Progress
) -> tuple[Image, Kernel | None, BuiltDriver]:
    """What machines are started from, made first as far as it is not in the cache.

    :raises UsageError: the spec asks for something that is not there
    :raises ProvisionError: a step failed
    """
    require_possible(spec)
    with made_ahead(spec, progress):
        image = provide_image(spec.image, progress)
    if spec.carrier is CarrierKind.LOCAL:
        from smbdirect_testbed.driver.local import provide_local_driver

        running = RunningKernel()
        return image, running, provide_local_driver(spec.driver, image, progress, running)
    uml = spec.carrier is CarrierKind.UML
    kernel = provide_kernel(spec.driver, image, progress) if uml else None
    return image, kernel, provide_driver(spec.driver, image, progress, kernel)


@contextmanager
def started_machines(
    spec: EnvironmentSpec, progress: Progress, directory: Path, *, keep: bool = False
) -> Iterator[StartedMachines]:
    """The machines that a spec names, with the wires between them.

    :param directory: the instance's state directory
    :raises UsageError: the spec asks for something that is not there
    :raises ProvisionError: a step failed
    """
    image, kernel, built = provide_parts(spec, progress)
    each = {name: progress.beside() for name in spec.machines}
    with ExitStack() as stack:
        with wires_between_machines(spec) as wires:
            contexts = {
                name: started_machine(
                    name,
                    image,
                    kernel,
                    built,
                    spec,
                    machine_directory(directory, name),
                    of_machine,
                    keep=keep,
                    plan=None if kernel else template_plan(spec, name, built),
                    wires=wires[name],
                )
                for name, of_machine in each.items()
            }
            machines = enter_together(stack, contexts)
        progress.join(each.values())
        yield StartedMachines(image, kernel, built, machines)
