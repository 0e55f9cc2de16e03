"""A virtual machine that runs: commands in it, and how it dies."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from smbdirect_testbed.agent_client import AgentClient, AgentPort
from smbdirect_testbed.carriers.qemu_process import QemuProcess
from smbdirect_testbed.carriers.ssh_machine import SshMachine
from smbdirect_testbed.carriers.vm_state import VmRecord, VmState
from smbdirect_testbed.errors import ProvisionError
from smbdirect_testbed.machine import SharedDirectory
from smbdirect_testbed.process import CommandResult
from smbdirect_testbed.ssh import SshChannel

_SHARED_THERE = PurePosixPath("/testbed")
_COMPLAINT = re.compile(r"^\S+Z qemu-[^ :]+: (.*)", re.MULTILINE)


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
        self.agent_port = state.agent
        self._qemu = qemu
        self._qemu_logs = state.libvirt / "log" / "qemu"
        self._port: AgentPort | None = None
        self._opening: threading.Thread | None = None

    def hold_agent(self) -> AgentClient:
        """Connect to the agent, which runs already, until :meth:`close`."""
        assert self.agent_port
        self._port = AgentPort(self.agent_port).__enter__()
        self.agent = AgentClient(self, self._port, started=True)
        return self.agent

    def open_channel_soon(self, *, timeout: float) -> None:
        """Open the channel in the background; until it is open the agent runs commands.

        :param timeout: seconds until giving up; commands then fail as they do without a channel
        """
        deadline = time.monotonic() + timeout

        def open_channel() -> None:
            # sshd is starting anew: until then it refuses, or has the key of another machine.
            while self._port and time.monotonic() < deadline:
                with suppress(ProvisionError, OSError):
                    self.channel.open(timeout=timeout)
                    return
                time.sleep(0.05)

        self._opening = threading.Thread(target=open_channel, daemon=True)
        self._opening.start()

    def close(self) -> None:
        """Stop watching the machine; it runs on."""
        if self._port:
            self._port.close()
            self._port = self.agent = None
        if self._qemu:
            self._qemu.close()
            self._qemu = None

    def _ended(self, *, timeout: float = 0) -> bool:
        return self._qemu is None or self._qemu.ended(timeout=timeout)

    def _last_words(self) -> str:
        return _complaint(self._qemu_logs) or "QEMU has ended"

    def run(
        self,
        command: Sequence[str],
        *,
        input: str | bytes | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> CommandResult:
        if self.agent and self._opening and self._opening.is_alive():
            text = input.decode(errors="replace") if isinstance(input, bytes) else input
            status, out, err = self.agent.call(
                "run", argv=list(command), input=text or "", timeout=timeout
            )
            result = CommandResult(tuple(command), status, out, err)
            return result.check() if check else result
        return super().run(command, input=input, timeout=timeout, check=check)


def _complaint(logs: Path) -> str | None:
    """What QEMU itself complained about last."""
    text = "".join(log.read_text(errors="replace") for log in logs.glob("*.log"))
    complaints = _COMPLAINT.findall(text)
    return f"QEMU has ended: {complaints[-1]}" if complaints else None
