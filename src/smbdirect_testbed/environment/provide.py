"""Providing an environment: from a spec to running servers, and back in the opposite order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from smbdirect_testbed.carriers.carrier import Kernel, MachineParts, TemplatePlan
from smbdirect_testbed.carriers.machine_links import links_between_machines
from smbdirect_testbed.carriers.start import machine_directory, started_machine
from smbdirect_testbed.config.spec import ServerSpec
from smbdirect_testbed.environment.blueprint import Blueprint
from smbdirect_testbed.environment.environment import Environment
from smbdirect_testbed.environment.template_contents import template_plan
from smbdirect_testbed.evidence.capture import captured_host, start_capture
from smbdirect_testbed.image.image import Image, provide_image
from smbdirect_testbed.kernel.built_driver import BuiltDriver
from smbdirect_testbed.kernel.prebuild import made_ahead
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
from smbdirect_testbed.smb.server import SmbServer, running
from smbdirect_testbed.smb.servers import ServerType
from smbdirect_testbed.smb.smbd import known_transports
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
    blueprint: Blueprint,
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
    spec = blueprint.spec
    with ExitStack() as stack:
        started = stack.enter_context(started_machines(blueprint, progress, directory, keep=keep))
        machines = started.machines
        # Work that mostly waits for a machine is done in parallel.
        pool = stack.enter_context(ThreadPoolExecutor())
        for machine in machines.values():
            stack.enter_context(running_agent(machine))
        drivers = {
            name: LoadedDriver(machine, started.driver) for name, machine in machines.items()
        }
        loading = pool.submit(cancel.carried(partial(_load, list(drivers.values()), progress)))
        samba = {
            name: pool.submit(
                cancel.carried(
                    partial(
                        known_transports, started.image, machines[name], drivers[name], progress
                    )
                )
            )
            for name in {spec.host(server.host).machine for server in blueprint.early_servers}
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
        for server in blueprint.early_servers:
            host = hosts[server.host]
            kind = blueprint.server_types[server.kind]
            starting = _started_server(server, kind, host, samba[host.machine.name], progress)
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
def _started_server(
    server: ServerSpec,
    kind: ServerType,
    host: Host,
    samba: Future[SambaTransports],
    progress: Progress,
) -> Iterator[SmbServer]:
    with ExitStack() as stack:
        with progress.phase("servers", f"starting {server.kind}"):
            made = kind.make(host, server.transports, samba.result())
            started = stack.enter_context(running(made))
        yield started


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


def provide_parts(
    blueprint: Blueprint, progress: Progress
) -> tuple[Image, Kernel | None, BuiltDriver]:
    """The parts that machines are started from, made first if they are not in the cache.

    :raises UsageError: the spec asks for something that is not there
    :raises CarrierFailed: there is no kernel for the machines
    :raises ProvisionError: another step failed
    """
    carrier, driver = blueprint.carrier, blueprint.spec.driver
    carrier.require_possible(blueprint.spec)
    options = blueprint.spec.kernel
    with made_ahead(blueprint.recipe, carrier.ahead, progress, options.config):
        image = provide_image(blueprint.recipe, progress)
    with carrier_failures():
        kernel: Kernel | None = carrier.provide_kernel(driver, options, image, progress)
    return image, kernel, carrier.provide_driver(driver, image, kernel, progress)


@contextmanager
def started_machines(
    blueprint: Blueprint, progress: Progress, directory: Path, *, keep: bool = False
) -> Iterator[StartedMachines]:
    """The machines of an environment, with the links between them.

    :param directory: the instance's state directory
    :raises UsageError: the spec asks for something that is not there
    :raises CarrierFailed: a machine could not be started
    :raises ProvisionError: another step failed
    """
    spec = blueprint.spec
    image, kernel, built = provide_parts(blueprint, progress)
    each = {name: progress.parallel() for name in spec.machines}
    with ExitStack() as stack:
        with links_between_machines(spec) as links:
            parts = {
                name: MachineParts(
                    name=name,
                    image=image,
                    spec=spec.machine,
                    directory=machine_directory(directory, name),
                    kernel=kernel,
                    driver=built,
                    links=links[name],
                    own_network=not spec.shares_network,
                    template=_template(blueprint, name, built),
                )
                for name in each
            }
            contexts = {
                name: started_machine(spec.carrier, parts[name], of_machine, keep=keep)
                for name, of_machine in each.items()
            }
            with carrier_failures():
                machines = enter_together(stack, contexts)
        progress.join(each.values())
        yield StartedMachines(image, kernel, built, machines)


def _template(blueprint: Blueprint, name: str, built: BuiltDriver) -> TemplatePlan | None:
    return template_plan(blueprint, name, built) if blueprint.carrier.clones else None
