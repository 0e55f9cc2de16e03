"""Bytes to and from an agent: through a socket, or through a process's pipes."""

from __future__ import annotations

import os
import select
import socket
import subprocess
from pathlib import Path
from typing import Protocol

from smbdirect_testbed.lib import process
from smbdirect_testbed.lib.errors import ProvisionError

_TIMEOUT = 90.0
"""Seconds for a connection: QEMU may be busy with starting."""


class Connection(Protocol):
    """Bytes to and from an agent."""

    def send(self, data: bytes) -> None:
        """Send all of it."""

    def receive(self) -> bytes:
        """Wait for some bytes; none at the end."""

    def interrupt(self) -> None:
        """Have a thread that waits in :meth:`receive` get the end."""

    def close(self) -> None:
        """End it."""


class AgentSocket:
    """A connection by a socket that leads to a machine's serial port."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._woken, self._wake = os.pipe()

    @classmethod
    def to(cls, path: Path) -> AgentSocket:
        """Connect to a Unix socket, which takes one connection at a time.

        :raises ProvisionError: it is not there
        """
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.settimeout(_TIMEOUT)
            connected.connect(str(path))
        except OSError as e:
            connected.close()
            raise ProvisionError(f"cannot reach the agent by {path}: {e.strerror}") from e
        connected.settimeout(None)
        return cls(connected)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> bytes:
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        poll.register(self._socket, select.POLLIN)
        if self._woken in dict(poll.poll()):
            return b""
        return self._socket.recv(65536)

    def interrupt(self) -> None:
        # Not by a shutdown, which the other side would notice: see the carrier uml.
        os.write(self._wake, b"x")

    def close(self) -> None:
        self._socket.close()
        os.close(self._woken)
        os.close(self._wake)


class AgentPipe:
    """A connection to a process that passes on what the agent reads and writes."""

    def __init__(self, proc: subprocess.Popen[bytes]) -> None:
        assert proc.stdin
        assert proc.stdout
        self._proc = proc
        self._in, self._out = proc.stdin, proc.stdout

    def send(self, data: bytes) -> None:
        self._in.write(data)
        self._in.flush()

    def receive(self) -> bytes:
        return self._out.read1(65536)  # type: ignore[attr-defined, no-any-return]

    def interrupt(self) -> None:
        try:
            self._in.close()
            self._proc.wait(timeout=5)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            process.kill_group(self._proc)
            self._proc.wait()

    def close(self) -> None:
        self._out.close()
