"""QEMU's processes: found by their arguments, watched and ended."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from smbdirect_testbed.lib.errors import ProvisionError

_PROC = Path("/proc")


@dataclass(frozen=True)
class Identity:
    """The identity of one machine's processes.

    :param uuid: an argument of the machine's QEMU, and of the process that starts it
    :param root: libvirt's directory for the machine; QEMUs that libvirt starts to query their
        capabilities have sockets below it
    """

    uuid: UUID
    root: Path

    def matches(self, arguments: list[bytes]) -> bool:
        """Whether a process with these arguments belongs to the machine."""
        if str(self.uuid).encode() in arguments:
            return True
        root = os.fsencode(self.root) + b"/"
        return b"qemu-" in arguments[0] and any(root in a for a in arguments)


class QemuProcess:
    """A process of a machine.

    It is held by a file descriptor: another process with its number is never mistaken for it.
    """

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._descriptor = descriptor

    def close(self) -> None:
        """Stop watching; the process runs on."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def ended(self, *, timeout: float = 0) -> bool:
        """Whether the process has ended.

        :param timeout: seconds to wait for the end
        """
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def kill(self) -> None:
        """End the process at once; nothing happens when it has ended already."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)


def belongs_to_us(pid: int) -> bool:
    """Whether a process is this user's, in the user namespace of this one.

    Any other may have the arguments that it likes, and is never taken for a part of a machine.

    :raises OSError: there is no such process
    """
    entry = _PROC / str(pid)
    status = (entry / "status").read_text(errors="replace")
    uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    ours = set(uids) == {str(os.geteuid())}
    return ours and _user_namespace(entry) == _user_namespace(_PROC / "self")


def find_processes(identity: Identity) -> Iterator[QemuProcess]:
    """All processes of a machine, but for this one; none of another user.

    Each is closed before the next is returned.
    """
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        if not _belongs(entry, identity):
            continue
        if process := _hold(int(entry.name), identity):
            try:
                yield process
            finally:
                process.close()


def open_process(identity: Identity) -> QemuProcess | None:
    """The machine's process, if it runs; the caller closes it."""
    for process in find_processes(identity):
        return _hold(process.pid, identity)
    return None


def end_processes(identity: Identity, *, timeout: float = 10) -> None:
    """End all processes of a machine and wait until they have.

    :param timeout: seconds until giving up
    :raises ProvisionError: they do not end
    """
    deadline = time.monotonic() + timeout
    # More than once: a process may have been starting another one.
    while processes := [p.pid for p in find_processes(identity)]:
        for process in find_processes(identity):
            process.kill()
            process.ended(timeout=max(0, deadline - time.monotonic()))
        if time.monotonic() >= deadline:
            raise ProvisionError(f"process {processes[0]} does not end")


def _hold(pid: int, identity: Identity) -> QemuProcess | None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # Checked again, because now the number cannot be reused.
    if _belongs(_PROC / str(pid), identity):
        return QemuProcess(pid, descriptor)
    os.close(descriptor)
    return None


def _belongs(entry: Path, identity: Identity) -> bool:
    try:
        arguments = (entry / "cmdline").read_bytes()
        return identity.matches(arguments.split(b"\0")) and belongs_to_us(int(entry.name))
    except OSError:
        return False


def _user_namespace(entry: Path) -> tuple[int, int] | None:
    """What tells a process's user namespace from others; None if the kernel has none."""
    try:
        found = (entry / "ns/user").stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
