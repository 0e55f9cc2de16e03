"""Machines of all carriers: started as a spec says, and found again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smbdirect_testbed.carriers.template import TemplatePlan
from smbdirect_testbed.carriers.uml import attach_uml, destroy_uml, uml_machine
from smbdirect_testbed.carriers.vm import attach_vm, destroy_vm, destroy_vm_strays, vm_machine
from smbdirect_testbed.carriers.vm_state import find_strays
from smbdirect_testbed.image import Image
from smbdirect_testbed.machine import Machine
from smbdirect_testbed.progress import Progress
from smbdirect_testbed.spec import MachineSpec
from smbdirect_testbed.uml_kernel import UmlKernel


@contextmanager
def started_machine(
    name: str,
    image: Image,
    kernel: UmlKernel | None,
    spec: MachineSpec,
    directory: Path,
    progress: Progress,
    *,
    keep: bool,
    plan: TemplatePlan | None,
) -> Iterator[Machine]:
    """A machine that takes commands: User Mode Linux with a kernel for it, else virtual.

    User Mode Linux has no templates: it boots in less time than a clone takes.

    See :func:`~smbdirect_testbed.carriers.vm.vm_machine` for the rest.
    """
    if kernel:
        with uml_machine(name, image, kernel, spec, directory, progress, keep=keep) as uml:
            yield uml
    else:
        with vm_machine(name, image, spec, directory, progress, keep=keep, plan=plan) as vm:
            yield vm


def attach(name: str, directory: Path) -> Machine:
    """The machine that another process left running in a directory, or that has died since.

    :raises ProvisionError: there is none
    """
    return attach_uml(directory) or attach_vm(name, directory)


def destroy(name: str, directory: Path) -> None:
    """End the machine that runs in ``directory``, and remove what is its own, if there is one."""
    destroy_uml(directory)
    destroy_vm(name, directory)


def destroy_strays() -> list[Path]:
    """End this user's machines whose directories were removed while they ran.

    Returns the directories.
    """
    ended = [state.directory for state in find_strays() if destroy_uml(state.directory)]
    return ended + destroy_vm_strays()
