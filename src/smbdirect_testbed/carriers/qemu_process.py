"""QEMU's process: found by its machine's UUID, watched and ended without mistaking it."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from smbdirect_testbed.errors import ProvisionError

_PROC = Path("/proc")


class QemuProcess:
    """A process that has a machine's UUID among its arguments.

    It is held by a file descriptor, so that its number may be given to another process without
    harm.
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

        :param timeout: seconds to wait for that
        """
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def kill(self) -> None:
        """End the process at once; nothing happens when it has ended already."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)


def find_processes(uuid: UUID) -> Iterator[QemuProcess]:
    """All processes with ``uuid`` as one of their arguments, but for this one.

    Each is closed when the next is asked for.
    """
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        if not _has_argument(entry, uuid):
            continue
        if process := _hold(int(entry.name), uuid):
            try:
                yield process
            finally:
                process.close()


def open_process(uuid: UUID) -> QemuProcess | None:
    """The process of the machine with this UUID, if it runs; closing it is up to the caller."""
    for process in find_processes(uuid):
        return _hold(process.pid, uuid)
    return None


def end_processes(uuid: UUID, *, timeout: float = 10) -> None:
    """End all processes with ``uuid`` among their arguments and wait until they have.

    :param timeout: seconds until giving up
    :raises ProvisionError: they belong to another user, or do not end
    """
    deadline = time.monotonic() + timeout
    # More than once: one of them may have been starting another.
    while processes := [p.pid for p in find_processes(uuid)]:
        for process in find_processes(uuid):
            try:
                process.kill()
            except PermissionError as e:
                raise ProvisionError(
                    f"process {process.pid} is a machine of another user",
                    hint="take it down as the user who started it",
                ) from e
            process.ended(timeout=max(0, deadline - time.monotonic()))
        if time.monotonic() >= deadline:
            raise ProvisionError(f"process {processes[0]} does not end")


def _hold(pid: int, uuid: UUID) -> QemuProcess | None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # Once more, now that the number cannot change hands.
    if _has_argument(_PROC / str(pid), uuid):
        return QemuProcess(pid, descriptor)
    os.close(descriptor)
    return None


def _has_argument(entry: Path, uuid: UUID) -> bool:
    try:
        arguments = (entry / "cmdline").read_bytes()
    except OSError:
        return False
    return str(uuid).encode() in arguments.split(b"\0")
