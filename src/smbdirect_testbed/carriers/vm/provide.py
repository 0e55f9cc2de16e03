"""The carrier ``vm``: QEMU through libvirt, with KVM if it works, otherwise emulated."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from smbdirect_testbed.carriers.boot import BootFailed, boot_twice
from smbdirect_testbed.carriers.carrier import TemplatePlan
from smbdirect_testbed.carriers.machine_files import VmRecord, VmState
from smbdirect_testbed.carriers.machine_links import MachineLinkEnd, dead_ends
from smbdirect_testbed.carriers.machine_process import Identity, end_processes, open_process
from smbdirect_testbed.carriers.vm import kvm_probe
from smbdirect_testbed.carriers.vm import template as templates
from smbdirect_testbed.carriers.vm.domain_xml import Accelerator, RamFile
from smbdirect_testbed.carriers.vm.libvirt_embed import save_domain
from smbdirect_testbed.carriers.vm.machine import VmMachine
from smbdirect_testbed.carriers.vm.sparse_copy import copy_sparse
from smbdirect_testbed.carriers.vm.start import (
    BOOT_TIMEOUT,
    KERNEL_OPTIONS,
    CloneFailed,
    VmParts,
    boot,
    clone,
)
from smbdirect_testbed.config.spec import MachineSpec
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.lib import cache
from smbdirect_testbed.lib.cache import disk_full_reported
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.machine.running_agent import running_agent
from smbdirect_testbed.machine.ssh import SshChannel

__all__ = [
    "BootFailed",
    "VmMachine",
    "attach_vm",
    "destroy_vm",
    "vm_machine",
]

_TEMPLATE = "template"
"""The directory, below a machine's own, of the machine that its template is made from."""
_GIB = 1.0


@contextmanager
def vm_machine(
    name: str,
    image: Image,
    spec: MachineSpec,
    directory: Path,
    progress: Progress,
    *,
    keep: bool = False,
    plan: TemplatePlan | None = None,
    links: tuple[MachineLinkEnd, ...] = (),
) -> Iterator[VmMachine]:
    """A virtual machine that has booted ``image`` and takes commands.

    With a plan it is a clone of a template, which is made first if it is missing. If cloning fails,
    the machine boots unprepared, and the reason is shown.

    The console and the shared directory stay in ``directory`` after its end.

    :param directory: of this machine alone; files of an earlier machine are removed
    :param keep: leave the machine running, unless an exception ends the context; see
        :func:`attach_vm` and :func:`destroy_vm`
    :param links: to other machines
    :raises BootFailed: it did not come up, twice
    :raises ProvisionError: the requested port is in use, or something on this computer is missing
    """
    directory = directory.absolute()
    destroy_vm(name, directory)
    kept = False
    try:
        parts = VmParts(name, image, spec, directory, None, links=links)
        machine = _provide(name, parts, VmState(directory), progress, plan)
        try:
            yield machine
        finally:
            machine.close()
        kept = keep
    finally:
        if not kept:
            destroy_vm(name, directory)


def attach_vm(name: str, directory: Path) -> VmMachine:
    """The machine that another process left running; it may have died.

    :raises ProvisionError: there is none
    """
    state = VmState(directory.absolute())
    record = state.read_record()
    if record is None or record.name != name:
        raise ProvisionError(f"there is no machine {name} in {directory}")
    machine = VmMachine(state, record, open_process(Identity(record.uuid, state.libvirt)))
    if not machine.death():
        machine.channel.open(timeout=BOOT_TIMEOUT[record.accelerator])
    return machine


def destroy_vm(name: str, directory: Path) -> None:
    """End the machine in ``directory``, even if another process started it; remove its files.

    Nothing happens when there is none. The console and the shared directory stay.

    :raises ProvisionError: it is another machine than ``name``, or does not end
    """
    if (nested := directory / _TEMPLATE).is_dir():
        destroy_vm(_TEMPLATE, nested)
        shutil.rmtree(nested, ignore_errors=True)
    state = VmState(directory.absolute())
    record = state.read_record()
    if record and record.name != name:
        raise ProvisionError(f"the machine in {directory} is {record.name}, not {name}")
    if record and state.has_runtime:
        SshChannel(state.ssh).close()
        end_processes(Identity(record.uuid, state.libvirt))
    state.remove()


def _provide(
    name: str,
    parts: VmParts,
    state: VmState,
    progress: Progress,
    plan: TemplatePlan | None,
) -> VmMachine:
    verdict = kvm_probe.probe()
    accelerator = Accelerator.KVM if verdict.works else Accelerator.TCG
    record = VmRecord(name, uuid4(), accelerator, verdict.reason, parts.spec.ssh_port)
    how = "with KVM" if verdict.works else f"without KVM: {verdict.reason}"
    if plan:
        try:
            return _provide_clone(record, parts, state, progress, plan, how)
        except (ProvisionError, OSError) as e:
            why = e.message if isinstance(e, ProvisionError) else str(e)
            progress.say(f"the machine cannot be cloned: {why}; booting it instead")
            destroy_vm(name, state.directory)
            record = replace(record, clone_failure=why, uuid=uuid4())
    with progress.phase("machine", f"starting machine {name} ({how})"):
        return _boot(record, parts, state, progress)


def _provide_clone(
    record: VmRecord,
    parts: VmParts,
    state: VmState,
    progress: Progress,
    plan: TemplatePlan,
    how: str,
) -> VmMachine:
    digest = templates.key(plan, parts.image, parts.spec, record.accelerator, KERNEL_OPTIONS)

    def make(directory: Path) -> None:
        with progress.phase("template", f"making a template for machine {record.name} ({how})"):
            _make_template(digest, record, parts, state, progress, plan, directory)

    template = templates.provide(digest, make, progress)
    record = replace(record, boot_failures=template.boot_failures)
    with progress.phase("machine", f"starting machine {record.name} as a clone ({how})"):
        try:
            with disk_full_reported(state.directory):
                return clone(record, parts, template, state)
        except CloneFailed:
            template.discard(progress)
            raise


def _make_template(
    digest: str,
    record: VmRecord,
    parts: VmParts,
    state: VmState,
    progress: Progress,
    plan: TemplatePlan,
    directory: Path,
) -> None:
    """Boot a machine, prepare it, and save it in a directory."""
    spec = replace(parts.spec, ssh_port=0)
    cache.require_space(directory, _GIB + spec.memory / 1024, "a template")
    # All of it is reserved: a machine without space for its memory dies silently.
    ram = directory / "ram.new"
    with ram.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, spec.memory << 20)
    original = VmState(state.directory / _TEMPLATE)
    try:
        record = replace(record, name=_TEMPLATE)
        with dead_ends(parts.links) as links:
            unlinked = replace(parts, spec=spec, links=links)
            machine = _boot(record, unlinked, original, progress, RamFile(ram, True))
        try:
            prepared = plan.prepare(machine)
            machine.channel.close()
            with running_agent(machine) as agent:
                agent.freeze()
            save_domain(original.libvirt, machine.record.uuid, directory / "state")
        finally:
            machine.close()
        end_processes(Identity(machine.record.uuid, original.libvirt))
        copy_sparse(ram, directory / "ram")
        copy_sparse(original.scratch, directory / "scratch.img")
        shutil.copyfile(original.console, directory / "console.log")
        ram.unlink()
        templates.write_manifest(directory, digest, prepared, machine.record.boot_failures)
    finally:
        destroy_vm(_TEMPLATE, original.directory)


def _boot(
    record: VmRecord,
    parts: VmParts,
    state: VmState,
    progress: Progress,
    ram: RamFile | None = None,
) -> VmMachine:
    def attempt(failures: tuple[str, ...]) -> VmMachine:
        failures = (*record.boot_failures, *failures)
        again = replace(record, boot_failures=failures, uuid=uuid4())
        return boot(again, parts, state, ram=ram)

    with disk_full_reported(state.directory):
        return boot_twice(
            attempt, lambda: destroy_vm(record.name, state.directory), state.console, progress
        )
