"""Machines of all carriers: started as a spec says, and found again.

The carrier for this computer's own kernel is imported only when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smbdirect_testbed.carriers.machine_files import find_strays
from smbdirect_testbed.carriers.machine_links import MachineLinkEnd
from smbdirect_testbed.carriers.uml.provide import attach_uml, destroy_uml, uml_machine
from smbdirect_testbed.carriers.vm.provide import (
    attach_vm,
    destroy_vm,
    destroy_vm_strays,
    vm_machine,
)
from smbdirect_testbed.carriers.vm.template import TemplatePlan
from smbdirect_testbed.config.spec import EnvironmentSpec
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.kernel.built_driver import BuiltDriver
from smbdirect_testbed.kernel.running import RunningKernel
from smbdirect_testbed.kernel.uml import UmlKernel
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.machine.machine import Machine


@contextmanager
def started_machine(
    name: str,
    image: Image,
    kernel: UmlKernel | RunningKernel | None,
    driver: BuiltDriver,
    spec: EnvironmentSpec,
    directory: Path,
    progress: Progress,
    *,
    keep: bool,
    plan: TemplatePlan | None,
    links: tuple[MachineLinkEnd, ...] = (),
) -> Iterator[Machine]:
    """A machine that takes commands: on the given kernel, or else a virtual one.

    User Mode Linux needs no template: it boots faster than a clone starts.

    See :func:`~smbdirect_testbed.carriers.vm.provide.vm_machine` for the rest.

    :param driver: to be loaded later
    """
    if isinstance(kernel, RunningKernel):
        from smbdirect_testbed.carriers.local.provide import local_machine

        with local_machine(
            *(name, image, kernel, directory, progress),
            driver=driver,
            own_network=not spec.shares_network,
            keep=keep,
        ) as local:
            yield local
    elif kernel:
        with uml_machine(
            name, image, kernel, spec.machine, directory, progress, keep=keep, links=links
        ) as uml:
            yield uml
    else:
        with vm_machine(
            name, image, spec.machine, directory, progress, keep=keep, plan=plan, links=links
        ) as vm:
            yield vm


def machine_directory(directory: Path, name: str) -> Path:
    """The directory with the files of an instance's machine.

    :param directory: the instance's
    """
    return directory / "machines" / name


def attach(name: str, directory: Path) -> Machine:
    """The machine of an instance that another process left running; it may have died.

    :param directory: the instance's
    :raises ProvisionError: there is none
    """
    from smbdirect_testbed.carriers.local.provide import attach_local

    of_machine = machine_directory(directory, name)
    return attach_uml(of_machine) or attach_local(of_machine) or attach_vm(name, of_machine)


def destroy_all(directory: Path) -> None:
    """End the machines of an instance, and remove their files.

    :param directory: the instance's
    """
    from smbdirect_testbed.carriers.local.provide import destroy_local

    for found in machine_directory(directory, "x").parent.glob("*"):
        if not destroy_uml(found) and not destroy_local(found):
            destroy_vm(found.name, found)


def destroy_strays() -> list[Path]:
    """End this user's machines whose directories were removed while they ran.

    Returns the directories.
    """
    from smbdirect_testbed.carriers.local.provide import destroy_local_stray

    ended = [state.directory for state in find_strays() if destroy_uml(state.directory)]
    return ended + destroy_local_stray() + destroy_vm_strays()
