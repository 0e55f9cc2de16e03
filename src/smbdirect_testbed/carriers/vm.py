"""The carrier ``vm``: QEMU through libvirt, with KVM where that works, else emulated."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from uuid import uuid4

from smbdirect_testbed import kvm, paths, process
from smbdirect_testbed.cache import disk_full_reported
from smbdirect_testbed.carriers.console import ConsoleReader, last_lines
from smbdirect_testbed.carriers.domain_xml import Accelerator, Domain, ShareMode
from smbdirect_testbed.carriers.libvirt_embed import StartFailed, start_domain
from smbdirect_testbed.carriers.qemu_process import (
    Identity,
    QemuProcess,
    end_processes,
    open_process,
)
from smbdirect_testbed.carriers.vm_state import VmRecord, VmState, find_strays
from smbdirect_testbed.carriers.watched_run import run_watched
from smbdirect_testbed.errors import CommandFailed, MachineDied, ProvisionError
from smbdirect_testbed.image import Image
from smbdirect_testbed.kernel_log import SplatKind, find_splats
from smbdirect_testbed.machine import Machine, SharedDirectory
from smbdirect_testbed.process import CommandResult
from smbdirect_testbed.progress import Progress
from smbdirect_testbed.spec import MachineSpec
from smbdirect_testbed.ssh import FAILED, SshChannel, make_keys
from smbdirect_testbed.wait import wait_until

_SHARED_THERE = PurePosixPath("/testbed")
_READY = "testbed: ready"
_PANIC = re.compile(r"Kernel panic - .*")
_COMPLAINT = re.compile(r"^\S+Z qemu-[^ :]+: (.*)", re.MULTILINE)
_KERNEL_OPTIONS = ("console=ttyS0", "panic=-1", "quiet")
_SCRATCH_SIZE = "4G"
_BOOT_TIMEOUT = {Accelerator.KVM: 60.0, Accelerator.TCG: 120.0}
_BOOT_ATTEMPTS = 2
_PORT_TAKEN = "Could not set up host forwarding rule"
_PORT_ATTEMPTS = 5

_FATAL = {SplatKind.PANIC, SplatKind.OOPS, SplatKind.BUG}


class BootFailed(MachineDied):
    """A machine did not come up."""


class VmMachine(Machine):
    """A virtual machine.

    :param record: its accelerator and versions, for the results
    """

    def __init__(self, state: VmState, record: VmRecord, qemu: QemuProcess | None) -> None:
        super().__init__(record.name, SharedDirectory(state.shared, _SHARED_THERE), state.console)
        self.record = record
        self.accelerator = record.accelerator.value
        self.provenance = {
            "accelerator_reason": record.accelerator_reason,
            "qemu": record.qemu,
            "libvirt": record.libvirt,
            "failed_boots": "; ".join(record.boot_failures),
        }
        self.channel = SshChannel(state.ssh)
        self._qemu = qemu
        self._qemu_logs = state.libvirt / "log" / "qemu"
        self._reader = ConsoleReader(state.console)
        self._death: str | None = None

    def close(self) -> None:
        """Stop watching the machine; it runs on."""
        if self._qemu:
            self._qemu.close()
            self._qemu = None

    def argv(self, command: Sequence[str], *, tty: bool = False) -> list[str]:
        return self.channel.argv(command, tty=tty)

    def death(self) -> str | None:
        if self._death is None:
            # In this order: at its end QEMU has written all of the console.
            ended = self._qemu is None or self._qemu.ended()
            panics = filter(None, map(_PANIC.search, self._reader.new_lines()))
            if panic := next(panics, None):
                self._death = panic.group()
            elif ended:
                self._death = _last_words(self._qemu_logs) or "QEMU has ended"
        return self._death

    def run(
        self,
        command: Sequence[str],
        *,
        input: str | bytes | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> CommandResult:
        tag = uuid4().hex
        argv = self.channel.argv(command, tag=tag)
        try:
            result = run_watched(argv, input=input, timeout=timeout, watch=self.raise_if_dead)
        except CommandFailed as e:
            with suppress(CommandFailed):
                process.run(self.channel.kill_argv(tag), timeout=10)
            raise CommandFailed(command, e.status, e.output) from None
        if result.status == FAILED and self._qemu:
            # The connection breaks a moment before its process is gone.
            self._qemu.ended(timeout=1)
        if not result.ok:
            self.raise_if_dead()
        result = CommandResult(tuple(command), result.status, result.stdout, result.stderr)
        return result.check() if check else result


def _last_words(logs: Path) -> str | None:
    """What QEMU itself complained about last."""
    text = "".join(log.read_text(errors="replace") for log in logs.glob("*.log"))
    complaints = _COMPLAINT.findall(text)
    return f"QEMU has ended: {complaints[-1]}" if complaints else None


@contextmanager
def vm_machine(
    name: str,
    image: Image,
    spec: MachineSpec,
    directory: Path,
    progress: Progress,
    *,
    keep: bool = False,
) -> Iterator[VmMachine]:
    """A virtual machine that has booted ``image`` and takes commands.

    The console and the shared directory stay in ``directory`` when it has ended.

    :param directory: of this machine alone; what an earlier machine left there is removed
    :param keep: leave the machine running, unless an exception ends the context; see
        :func:`attach_vm` and :func:`destroy_vm`
    :raises BootFailed: it did not come up, twice
    :raises ProvisionError: the port asked for is in use, or something on this computer is missing
    """
    directory = directory.absolute()
    destroy_vm(name, directory)
    kept = False
    try:
        machine = _provide(name, image, spec, VmState(directory), progress)
        try:
            yield machine
        finally:
            machine.close()
        kept = keep
    finally:
        if not kept:
            destroy_vm(name, directory)


def attach_vm(name: str, directory: Path) -> VmMachine:
    """The machine that another process left running, or that has died since.

    :raises ProvisionError: there is none
    """
    state = VmState(directory.absolute())
    record = state.read_record()
    if record is None or record.name != name:
        raise ProvisionError(f"there is no machine {name} in {directory}")
    machine = VmMachine(state, record, open_process(Identity(record.uuid, state.libvirt)))
    if not machine.death():
        machine.channel.open(timeout=_BOOT_TIMEOUT[record.accelerator])
    return machine


def destroy_vm(name: str, directory: Path) -> None:
    """End the machine that runs in ``directory``, whoever started it, and remove what is its own.

    Nothing happens when there is none. The console and the shared directory stay.

    :raises ProvisionError: the machine is another user's, or another machine than ``name``
    """
    state = VmState(directory.absolute())
    record = state.read_record()
    if record and record.name != name:
        raise ProvisionError(f"the machine in {directory} is {record.name}, not {name}")
    if record and state.has_runtime:
        SshChannel(state.ssh).close()
        end_processes(Identity(record.uuid, state.libvirt))
    state.remove()


def destroy_vm_strays() -> list[Path]:
    """End this user's machines whose directories were removed while they ran.

    Returns the directories.
    """
    strays = find_strays()
    for state in strays:
        if record := state.read_record():
            end_processes(Identity(record.uuid, state.libvirt))
        state.remove()
    return [state.directory for state in strays]


def _provide(
    name: str, image: Image, spec: MachineSpec, state: VmState, progress: Progress
) -> VmMachine:
    verdict = kvm.probe()
    accelerator = Accelerator.KVM if verdict.works else Accelerator.TCG
    record = VmRecord(name, uuid4(), accelerator, verdict.reason, spec.ssh_port)
    how = "with KVM" if verdict.works else f"without KVM: {verdict.reason}"
    with (
        progress.phase("machine", f"starting machine {name} ({how})"),
        disk_full_reported(state.directory),
    ):
        while True:
            try:
                return _boot(record, image, spec, state)
            except BootFailed as e:
                failures = (*record.boot_failures, e.message)
                record = replace(record, boot_failures=failures, uuid=uuid4())
                destroy_vm(name, state.directory)
                if len(failures) == _BOOT_ATTEMPTS:
                    raise
                kept = state.console.replace(state.console.with_suffix(f".{len(failures)}.log"))
                progress.say(f"{e.message}; starting it again (its console is in {kept})")


def _boot(record: VmRecord, image: Image, spec: MachineSpec, state: VmState) -> VmMachine:
    state.make()
    state.console.write_bytes(b"")
    make_keys(state.ssh, state.shared)
    _make_scratch_disk(state.scratch)
    record = _start(record, image, spec, state)
    channel = SshChannel(state.ssh)
    channel.configure(record.ssh_port)
    machine = VmMachine(state, record, open_process(Identity(record.uuid, state.libvirt)))
    try:
        _wait_until_ready(machine)
        channel.open(timeout=_BOOT_TIMEOUT[record.accelerator])
    except BaseException:
        machine.close()
        raise
    return machine


def _start(record: VmRecord, image: Image, spec: MachineSpec, state: VmState) -> VmRecord:
    """Start QEMU; returns the record with what is known from then on."""
    for _ in range(_PORT_ATTEMPTS):
        record = replace(record, ssh_port=_claim_port(spec.ssh_port))
        state.write_record(record)
        domain = Domain(
            name=record.name,
            uuid=record.uuid,
            accelerator=record.accelerator,
            cpus=spec.cpus,
            memory=spec.memory,
            kernel=image.kernel,
            initramfs=image.initramfs,
            kernel_options=(*_KERNEL_OPTIONS, *spec.kernel_options),
            root=image.root,
            scratch=state.scratch,
            shared=state.shared,
            share_mode=_share_mode(state.shared),
            console=state.console,
            ssh_port=record.ssh_port,
        )
        try:
            versions = start_domain(
                state.libvirt, domain.xml(), record.uuid, paths.cache() / "libvirt"
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
    timeout = _BOOT_TIMEOUT[machine.record.accelerator]

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
