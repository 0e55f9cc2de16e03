"""The first process of a machine of the carrier ``local``, which is ours and no other.

Root enters its namespaces and kills what is in them, so nothing that another user may choose tells
which process it is: neither arguments nor a number that was free again. The program that starts a
machine notes number and start time where only root can write, before the machine's process goes on.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from smbdirect_testbed.carriers.local.record import LocalRecord, process_note
from smbdirect_testbed.carriers.machine_process import QemuProcess, belongs_to_us

_PROC = Path("/proc")
_NAMESPACES = {"mnt": "mount", "uts": "uts", "ipc": "ipc", "net": "net", "pid": "pid"}
"""Options of nsenter by name below ``/proc/PID/ns``."""


class FirstProcess(QemuProcess):
    """The process, and the namespaces it is in, held so that neither can become another's."""

    def __init__(self, pid: int, descriptor: int) -> None:
        super().__init__(pid, descriptor)
        self._namespaces: dict[str, int] = {}
        self._root = -1

    def hold_namespaces(self) -> bool:
        """Whether it has a process namespace of its own and still runs; then all are held.

        :raises OSError: it has ended
        """
        directory = _PROC / str(self.pid)
        for name in _NAMESPACES:
            self._namespaces[name] = os.open(directory / "ns" / name, os.O_RDONLY)
        self._root = os.open(directory / "root", os.O_PATH | os.O_DIRECTORY)
        held = os.fstat(self._namespaces["pid"])
        # What starts a machine is in that of all others on this computer, whom its end would end.
        return not os.path.samestat(held, (_PROC / "self/ns/pid").stat()) and not self.ended()

    def close(self) -> None:
        """Let go of the process and of its namespaces, which end when it has ended."""
        super().close()
        for descriptor in (*self._namespaces.values(), *([self._root] if self._root >= 0 else ())):
            os.close(descriptor)
        self._namespaces, self._root = {}, -1

    def enter(self, *namespaces: str) -> list[str]:
        """What to put before a command to run it in the machine's root and some namespaces.

        :param namespaces: names as in ``/proc/PID/ns``; none for all of them
        """
        # By what is held, and not by the number: that may be another's when nsenter looks.
        held = f"/proc/{os.getpid()}/fd"
        return [
            "nsenter",
            *(
                f"--{_NAMESPACES[name]}={held}/{self._namespaces[name]}"
                for name in namespaces or _NAMESPACES
            ),
            f"--root={held}/{self._root}",
            f"--wd={held}/{self._root}",
        ]


def first_process(record: LocalRecord) -> FirstProcess | None:
    """The machine's first process, if it runs; closing it is up to the caller."""
    try:
        noted = json.loads(process_note(record).read_text())
    except (FileNotFoundError, PermissionError):
        return None
    pid, started = int(noted["pid"]), int(noted["started"])
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    held = FirstProcess(pid, descriptor)
    try:
        # What is read of the number is read of the process, if that is still there afterwards.
        if start_time(pid) == started and belongs_to_us(pid) and held.hold_namespaces():
            return held
    except OSError:
        pass  # It has ended.
    held.close()
    return None


def start_time(pid: int) -> int:
    """When a process was started, in clock ticks since the computer was: see proc_pid_stat(5)."""
    return int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
