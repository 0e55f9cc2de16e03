"""Starting a virtual machine: by booting an image, or as a clone of a template."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from smbdirect_testbed import paths, process
from smbdirect_testbed.carriers.console import ConsoleReader, last_lines
from smbdirect_testbed.carriers.domain_xml import Accelerator, Domain, RamFile, ShareMode
from smbdirect_testbed.carriers.libvirt_embed import StartFailed, start_domain
from smbdirect_testbed.carriers.qemu_process import Identity, open_process
from smbdirect_testbed.carriers.sparse import copy_sparse
from smbdirect_testbed.carriers.template import Template
from smbdirect_testbed.carriers.virtual_machine import BootFailed, VmMachine
from smbdirect_testbed.carriers.vm_state import Start, VmRecord, VmState
from smbdirect_testbed.errors import ProvisionError
from smbdirect_testbed.image import Image
from smbdirect_testbed.kernel_log import SplatKind, find_splats
from smbdirect_testbed.spec import MachineSpec
from smbdirect_testbed.ssh import SHARED_FILES, make_keys
from smbdirect_testbed.wait import wait_until

_READY = "testbed: ready"
KERNEL_OPTIONS = ("console=ttyS0", "panic=-1", "quiet")
"""Of every machine, before those of its spec."""
_SCRATCH_SIZE = "4G"
BOOT_TIMEOUT = {Accelerator.KVM: 60.0, Accelerator.TCG: 120.0}
"""Seconds from the start of QEMU to the first command."""
_PORT_TAKEN = "Could not set up host forwarding rule"
_PORT_ATTEMPTS = 5
_ENTROPY = 64

_FATAL = {SplatKind.PANIC, SplatKind.OOPS, SplatKind.BUG}


@dataclass(frozen=True)
class Plan:
    """What a machine is to be started from."""

    image: Image
    spec: MachineSpec


class CloneFailed(ProvisionError):
    """A machine did not start from a template, and it may be the template's fault."""


def boot(record: VmRecord, plan: Plan, state: VmState, *, ram: RamFile | None = None) -> VmMachine:
    """Boot a machine.

    :param ram: the file that is to be its memory; None for memory that is no file
    :raises BootFailed: it did not come up
    """
    state.make()
    state.console.write_bytes(b"")
    make_keys(state.ssh, state.shared)
    _make_scratch_disk(state.scratch)
    record = _start(record, plan, state, ram, None)
    with _watched(record, state) as machine:
        _wait_until_ready(machine)
        machine.channel.open(timeout=BOOT_TIMEOUT[record.accelerator])
    return machine


def clone(record: VmRecord, plan: Plan, template: Template, state: VmState) -> VmMachine:
    """Start a machine as a copy of a template.

    Its clock, random numbers, host key and MAC become its own before anyone else can reach it.

    :raises CloneFailed: it did not start, or does not answer
    """
    state.make()
    shutil.copyfile(template.console, state.console)
    make_keys(state.ssh, state.shared)
    copy_sparse(template.scratch, state.scratch)
    record = replace(record, start=Start.CLONE, template=template.digest)
    ram = RamFile(template.ram, shared=False)
    try:
        record = _start(record, plan, state, ram, template.state)
    except StartFailed as e:
        raise CloneFailed(e.message, hint=e.hint, detail=e.detail) from e
    if not template.is_in_place():
        raise CloneFailed("the template was replaced while it was cloned")
    with _watched(record, state) as machine:
        machine.prepared = template.prepared
        machine.agent_started = True
        try:
            _thaw(machine, state)
        except ProvisionError as e:
            raise CloneFailed(e.message, hint=e.hint, detail=e.detail) from e
        machine.open_channel_soon(timeout=BOOT_TIMEOUT[record.accelerator])
    return machine


def _thaw(machine: VmMachine, state: VmState) -> None:
    """Make a copy of a template a machine of its own."""
    offered = state.shared / SHARED_FILES
    machine.hold_agent().call(
        "thaw",
        time_now=time.time(),
        entropy=secrets.token_hex(_ENTROPY),
        mac=machine.record.mac,
        keys={name: (offered / name).read_text() for name in ("authorized_keys", "host_ed25519")},
    )


@contextmanager
def _watched(record: VmRecord, state: VmState) -> Iterator[VmMachine]:
    """The machine that was started; closed if an exception ends the context."""
    machine = VmMachine(state, record, open_process(Identity(record.uuid, state.libvirt)))
    machine.channel.configure(record.ssh_port)
    try:
        yield machine
    except BaseException:
        machine.close()
        raise


def _start(
    record: VmRecord, plan: Plan, state: VmState, ram: RamFile | None, incoming: Path | None
) -> VmRecord:
    """Start QEMU; returns the record with what is known from then on.

    :param incoming: the saved state that it goes on from
    """
    record = replace(record, mac=_mac(record.uuid))
    for _ in range(_PORT_ATTEMPTS):
        record = replace(record, ssh_port=_claim_port(plan.spec.ssh_port))
        state.write_record(record)
        domain = Domain(
            name=record.name,
            uuid=record.uuid,
            accelerator=record.accelerator,
            cpus=plan.spec.cpus,
            memory=plan.spec.memory,
            kernel=plan.image.kernel,
            initramfs=plan.image.initramfs,
            kernel_options=(*KERNEL_OPTIONS, *plan.spec.kernel_options),
            root=plan.image.root,
            scratch=state.scratch,
            shared=state.shared,
            share_mode=_share_mode(state.shared),
            console=state.console,
            ssh_port=record.ssh_port,
            mac=record.mac,
            agent=state.agent,
            ram=ram,
            incoming=incoming is not None,
        )
        try:
            versions = start_domain(
                state.libvirt,
                domain.xml(),
                record.uuid,
                paths.cache() / "libvirt",
                state=incoming,
            )
        except StartFailed as e:
            # Someone took the port between our look at it and QEMU's.
            if _PORT_TAKEN in e.message:
                continue
            raise
        record = replace(record, libvirt=versions.libvirt, qemu=versions.qemu)
        state.write_record(record)
        return record
    raise ProvisionError("no free loopback port was found for the machine's ssh")


def _mac(uuid: UUID) -> str:
    """A MAC with the prefix that QEMU's manual gives to emulated machines."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in uuid.bytes[-3:])


def _claim_port(wanted: int) -> int:
    """The port ``wanted``, or a free one for 0.

    :raises ProvisionError: it is in use
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as e:
            raise ProvisionError(
                f"port {wanted} on 127.0.0.1, which the machine's ssh should get,"
                f" cannot be used: {e.strerror}",
                hint="set ssh_port to another port, or to 0 for any that is free",
            ) from e
        port: int = probe.getsockname()[1]
        return port


def _share_mode(directory: Path) -> ShareMode:
    """How the machine's root can be root in a directory."""
    if os.geteuid() == 0:
        return ShareMode.SQUASH
    try:
        os.setxattr(directory, "user.testbed", b"")
        os.removexattr(directory, "user.testbed")
    except OSError:
        # Then all files are this user's for the machine too, and cannot be given away.
        return ShareMode.SQUASH
    return ShareMode.MAPPED


def _make_scratch_disk(image: Path) -> None:
    """Make a disk with an empty ext4 on it; it takes up space as it is written to."""
    image.unlink(missing_ok=True)
    # root_owner: otherwise the top directory belongs to the user who runs this.
    options = "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1"
    process.run(
        ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-E", options, image, _SCRATCH_SIZE],
        env={"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"},
        timeout=60,
    )


def _wait_until_ready(machine: VmMachine) -> None:
    """Wait until the machine's console says so.

    :raises BootFailed: it died, its kernel failed, or it took too long
    """
    reader = ConsoleReader(machine.console)
    seen: list[str] = []
    timeout = BOOT_TIMEOUT[machine.record.accelerator]

    def ready() -> bool:
        failure = machine.death()
        seen.extend(reader.new_lines())
        if any(_READY in line for line in seen):
            return True
        fatal = (s.title for s in find_splats("\n".join(seen)) if s.kind in _FATAL)
        if failure := failure or next(fatal, None):
            raise _boot_failed(machine, failure)
        return False

    try:
        wait_until(ready, "the machine to be ready", timeout=timeout)
    except BootFailed:
        raise
    except ProvisionError as e:
        raise _boot_failed(machine, f"it was not ready after {timeout:g} s") from e


def _boot_failed(machine: VmMachine, reason: str) -> BootFailed:
    return BootFailed(
        f"machine {machine.name} did not boot: {reason}",
        hint=f"its console is in {machine.console}",
        detail=last_lines(machine.console),
    )
