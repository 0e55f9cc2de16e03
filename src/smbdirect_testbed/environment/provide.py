"""Providing an environment: from a spec to running servers, and back in the opposite order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from smbdirect_testbed.carriers.machine_links import links_between_machines
from smbdirect_testbed.carriers.start import machine_directory, started_machine
from smbdirect_testbed.config.spec import CarrierKind, EnvironmentSpec, ServerKind, Transport
from smbdirect_testbed.environment.environment import Environment, Kernel
from smbdirect_testbed.environment.template_contents import template_plan
from smbdirect_testbed.evidence.capture import captured_host, start_capture
from smbdirect_testbed.image.image import Image, provide_image
from smbdirect_testbed.kernel.build import provide_driver
from smbdirect_testbed.kernel.built_driver import BuiltDriver
from smbdirect_testbed.kernel.prebuild import made_ahead
from smbdirect_testbed.kernel.running import RunningKernel
from smbdirect_testbed.kernel.uml import UmlKernel
from smbdirect_testbed.kernel.uml_from_tree import provide_kernel
from smbdirect_testbed.lib import cancel
from smbdirect_testbed.lib.background import Background
from smbdirect_testbed.lib.errors import carrier_failures
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.lib.simultaneous import enter_together
from smbdirect_testbed.machine.host import Host
from smbdirect_testbed.machine.kernel_log import KernelLog
from smbdirect_testbed.machine.loaded_driver import LoadedDriver
from smbdirect_testbed.machine.machine import Machine
from smbdirect_testbed.machine.running_agent import running_agent
from smbdirect_testbed.machine.topology import made_hosts
from smbdirect_testbed.smb.smbd import Smbd, known_transports, running_smbd
from smbdirect_testbed.smb.transports import SambaTransports

_kept: list[ExitStack] = []
"""Environments that stay up for later commands.

Garbage collection of one of these stacks would undo it, so the command line then ends by
``os._exit``.
"""


def anything_kept() -> bool:
    """Whether this process provided an environment that outlives it."""
    return bool(_kept)


@contextmanager
def provide(
    spec: EnvironmentSpec,
    progress: Progress,
    directory: Path,
    *,
    keep: bool = False,
    watched: bool = False,
) -> Iterator[Environment]:
    """Provide an environment; on exit undo everything, unless ``keep`` is set and it got ready.

    :param directory: the instance's state directory; exists, empty
    :param watched: scenarios will run in it: the capture is prepared, and servers start in the
        background; a failed start is raised where the server is asked for
    :raises UsageError: the spec asks for something that does not exist
    :raises ProvisionError: a step failed
    """
    with ExitStack() as stack:
        started = stack.enter_context(started_machines(spec, progress, directory, keep=keep))
        machines = started.machines
        # Work that mostly waits for a machine is done in parallel.
        pool = stack.enter_context(ThreadPoolExecutor())
        for machine in machines.values():
            stack.enter_context(running_agent(machine))
        drivers = {
            name: LoadedDriver(machine, started.driver) for name, machine in machines.items()
        }
        loading = pool.submit(cancel.carried(partial(_load, list(drivers.values()), progress)))
        smbds = [server for server in spec.servers if server.kind is ServerKind.SMBD]
        samba = {
            name: pool.submit(
                cancel.carried(
                    partial(
                        known_transports, started.image, machines[name], drivers[name], progress
                    )
                )
            )
            for name in {spec.host(server.host).machine for server in smbds}
        }
        capture: Future[None] | None = None

        def begin_capture(hosts: Mapping[str, Host]) -> None:
            nonlocal capture
            if watched and (client := captured_host(hosts)):
                capture = pool.submit(cancel.carried(partial(start_capture, client)))

        with progress.phase("hosts", f"making hosts {', '.join(h.name for h in spec.hosts)}"):
            made = made_hosts(
                spec, machines, keep=keep, before_links=begin_capture, before_rdma=loading.result
            )
            hosts = stack.enter_context(made)
        logs = {name: KernelLog(machine) for name, machine in machines.items()}
        environment = Environment(
            spec, started.image, started.kernel, machines, drivers, hosts, logs, directory
        )
        for server in smbds:
            host = hosts[server.host]
            starting = _started_smbd(host, samba[host.machine.name], server.transports, progress)
            environment.starting[server.kind] = stack.enter_context(Background(starting))
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
    """Machines, and the parts that they were started from.

    :param kernel: the machines' kernel, if it is not the image's own
    :param driver: to be loaded
    """

    image: Image
    kernel: Kernel | None
    driver: BuiltDriver
    machines: Mapping[str, Machine]


def require_possible(spec: EnvironmentSpec) -> None:
    """Check quickly whether this computer permits an environment.

    :raises ProvisionError: it does not
    """
    if spec.carrier is CarrierKind.LOCAL:
        from smbdirect_testbed.carriers.local.checks import require_computer

        require_computer(spec, RunningKernel())


def provide_parts(
    spec: EnvironmentSpec, progress: Progress
) -> tuple[Image, Kernel | None, BuiltDriver]:
    """The parts that machines are started from, made first if they are not in the cache.

    :raises UsageError: the spec asks for something that is not there
    :raises CarrierFailed: there is no kernel for the machines
    :raises ProvisionError: another step failed
    """
    require_possible(spec)
    with made_ahead(spec, progress):
        image = provide_image(spec.image, progress)
    if spec.carrier is CarrierKind.LOCAL:
        from smbdirect_testbed.kernel.installed_driver import provide_local_driver

        running = RunningKernel()
        return image, running, provide_local_driver(spec.driver, image, progress, running)
    kernel: UmlKernel | None = None
    if spec.carrier is CarrierKind.UML:
        with carrier_failures():
            kernel = provide_kernel(spec.driver, image, progress)
    return image, kernel, provide_driver(spec.driver, image, progress, kernel)


@contextmanager
def started_machines(
    spec: EnvironmentSpec, progress: Progress, directory: Path, *, keep: bool = False
) -> Iterator[StartedMachines]:
    """The machines that a spec names, with the links between them.

    :param directory: the instance's state directory
    :raises UsageError: the spec asks for something that is not there
    :raises CarrierFailed: a machine could not be started
    :raises ProvisionError: another step failed
    """
    image, kernel, built = provide_parts(spec, progress)
    each = {name: progress.parallel() for name in spec.machines}
    with ExitStack() as stack:
        with links_between_machines(spec) as links:
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
                    links=links[name],
                )
                for name, of_machine in each.items()
            }
            with carrier_failures():
                machines = enter_together(stack, contexts)
        progress.join(each.values())
        yield StartedMachines(image, kernel, built, machines)
