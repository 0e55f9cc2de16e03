"""A running virtual machine: its commands and its death."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from smbdirect_testbed.carriers.machine_files import VmRecord, VmState
from smbdirect_testbed.carriers.machine_process import QemuProcess
from smbdirect_testbed.carriers.remote_machine import SshMachine
from smbdirect_testbed.machine.shared_directory import SharedDirectory
from smbdirect_testbed.machine.ssh import SshChannel

_SHARED_THERE = PurePosixPath("/testbed")
_COMPLAINT = re.compile(r"^\S+Z qemu-[^ :]+: (?!warning: )(.*)", re.MULTILINE)


class VmMachine(SshMachine):
    """A virtual machine.

    :param record: its accelerator and versions, for the results
    """

    def __init__(self, state: VmState, record: VmRecord, qemu: QemuProcess | None) -> None:
        shared = SharedDirectory(state.shared, _SHARED_THERE)
        super().__init__(record.name, shared, state.console, SshChannel(state.ssh))
        self.record = record
        self.accelerator = record.accelerator.value
        self.provenance = {
            "accelerator_reason": record.accelerator_reason,
            "qemu": record.qemu,
            "libvirt": record.libvirt,
            "start": record.start.value,
            "template": record.template,
            "failed_boots": "; ".join(record.boot_failures),
            "failed_clone": record.clone_failure,
        }
        self._qemu = qemu
        self._qemu_logs = state.libvirt / "log" / "qemu"

    def close(self) -> None:
        super().close()
        if self._qemu:
            self._qemu.close()
            self._qemu = None

    def _ended(self, *, timeout: float = 0) -> bool:
        return self._qemu is None or self._qemu.ended(timeout=timeout)

    def _kill(self) -> None:
        if self._qemu:
            self._qemu.kill()

    def _last_words(self) -> str:
        return _complaint(self._qemu_logs) or "QEMU has ended"


def _complaint(logs: Path) -> str | None:
    """The last complaint of QEMU itself."""
    text = "".join(log.read_text(errors="replace") for log in logs.glob("*.log"))
    complaints = _COMPLAINT.findall(text)
    return f"QEMU has ended: {complaints[-1]}" if complaints else None
