"""The testbed's side of :mod:`smbdirect_testbed.agent`."""

from __future__ import annotations

import ast
import io
import os
import select
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from smbdirect_testbed.lib import paths, process
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.process import CommandResult

if TYPE_CHECKING:
    from smbdirect_testbed.machine.machine import Machine

_PACKAGE = paths.PACKAGE / "agent"
_DIRECTORY = "agent"
"""Below the shared directory: the agent's program, and what is too much for its connection."""
_PROGRAM = "agent.pyz"
_PORT = "port"
"""The machine's name of the agent's serial port. If it is there, the image's init starts it."""
_TIMEOUT = 90.0
"""Seconds for one answer: Python takes seconds to start under TCG."""
_GRACE = 10.0
"""Seconds after a command's deadline for the agent to say so."""
_INTERVAL = 0.5
"""Seconds after which a wait looks whether the machine lives."""
_LARGE = 512
"""Bytes of a request from which on a file carries it.

That is faster than a serial port. And User Mode Linux no longer reads from one that ever held more
than 4 KiB (``line_throttle`` in ``arch/um/drivers/line.c``, which ``line_unthrottle`` undoes only
by half), so that all requests under way must be less than that together.
"""
_WITHOUT_FILES = {"freeze", "thaw"}
"""What is asked for while the shared directory may not be there."""


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


@dataclass
class _Waiting:
    """Somebody who waits for an answer."""

    came: threading.Event = field(default_factory=threading.Event)
    answer: dict[str, Any] | None = None


class AgentClient:
    """Sends requests to the agent in a machine; safe to use from several threads.

    An agent may be starting in the background: then the first request waits until it is ready.

    :param started: the agent runs already
    """

    def __init__(self, machine: Machine, connection: Connection, *, started: bool) -> None:
        self._machine = machine
        self._connection = connection
        self._lock = threading.Lock()
        self._ended = False
        self._waiting: dict[int, _Waiting] = {}
        self._ready = _Waiting()
        if started:
            self._ready.came.set()
        else:
            self._waiting[0] = self._ready
        # Not from 1: an answer to someone who asked before us may still come.
        self._numbers = count(time.monotonic_ns())
        self._files = machine.shared.here / _DIRECTORY
        self._files.mkdir(parents=True, exist_ok=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """End the connection."""
        self._connection.interrupt()
        self._reader.join()
        self._connection.close()

    def wait_ready(self, watch: Callable[[], None], *, timeout: float, interval: float) -> bool:
        """Wait until the agent has started; false if it did not in time.

        :param watch: called at every interval; to raise when waiting is of no use
        """
        deadline = time.monotonic() + timeout
        while not self._ready.came.wait(interval):
            watch()
            if time.monotonic() > deadline:
                return False
        watch()
        return self._ready.answer is not None

    def call(self, do: str, *, timeout: float = _TIMEOUT, **arguments: Any) -> Any:
        """Have the agent do something and return its answer.

        :param timeout: seconds that it may take
        :raises ProvisionError: the agent failed, with its reason
        :raises MachineDied: the machine stopped running
        """
        return self._call(do, arguments, timeout)

    def run(
        self,
        command: Sequence[str],
        *,
        input: str | bytes | None,
        timeout: float,
        namespaces_of: int = 0,
    ) -> CommandResult:
        """Run a command to its end, whatever its status; see :meth:`Machine.run`.

        :raises CommandFailed: the deadline passed; it was killed with all that it had started
        :raises MachineDied: the machine stopped running
        """
        there = self._machine.shared.path_there(self._files)
        arguments = {"argv": list(command), "timeout": timeout, "outputs": str(there)}
        if namespaces_of:
            arguments["place"] = namespaces_of
        if input is not None:
            data = input.encode() if isinstance(input, str) else input
            arguments["input"] = data.decode("latin-1")
        try:
            answer = self._call("run", arguments, timeout + _GRACE)
        except _NoAnswer:
            raise CommandFailed(command, None, "") from None
        out, err = self._output(answer, "out"), self._output(answer, "err")
        if answer["status"] is None:
            raise CommandFailed(command, None, out + err)
        return CommandResult(tuple(command), answer["status"], out, err)

    def _output(self, answer: dict[str, Any], name: str) -> str:
        if f"{name}_file" not in answer:
            data = str(answer[name]).encode("latin-1")
        else:
            file = self._files / str(answer[f"{name}_file"])
            data = file.read_bytes()
            file.unlink()
        return data.decode(errors="replace")

    def _call(self, do: str, arguments: dict[str, Any], timeout: float) -> Any:
        self._wait(self._ready, "starting the agent", _TIMEOUT)
        waiting = _Waiting()
        number = next(self._numbers)
        request = ascii({"id": number, "do": do, "with": arguments})
        file = None
        if len(request) >= _LARGE and do not in _WITHOUT_FILES:
            file = self._files / f"{number}.request"
            file.write_text(request)
            there = self._machine.shared.path_there(file)
            request = ascii({"id": number, "do": "read", "with": {"file": str(there)}})
        try:
            with self._lock:
                self._waiting[number] = waiting
                if self._ended:
                    waiting.came.set()
                # The reader notices, too, and may have something to read still.
                with suppress(OSError):
                    self._connection.send(request.encode() + b"\n")
            answer = self._wait(waiting, do, timeout)
        finally:
            self._waiting.pop(number, None)
            if file:
                file.unlink(missing_ok=True)
        if "error" in answer:
            raise ProvisionError(f"machine {self._machine.name}: {answer['error']}")
        return answer["ok"]

    def _wait(self, waiting: _Waiting, what: str, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while not waiting.came.wait(min(_INTERVAL, max(0.0, deadline - time.monotonic()))):
            self._machine.raise_if_dead()
            if time.monotonic() >= deadline:
                raise _NoAnswer(self._text(what, f"did not answer in {timeout:g} s"))
        if waiting.answer is None and waiting is not self._ready:
            self._raise_ended(what)
        return waiting.answer or {}

    def _raise_ended(self, what: str) -> None:
        # The connection breaks a moment before the machine's process is gone.
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            self._machine.raise_if_dead()
            time.sleep(0.02)
        raise ProvisionError(self._text(what, "ended"))

    def _read(self) -> None:
        received = b""
        while data := self._receive():
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                answer = ast.literal_eval(line.decode())
                if waiting := self._waiting.get(answer["id"]):
                    waiting.answer = answer
                    waiting.came.set()
        with self._lock:
            self._ended = True
            for waiting in self._waiting.values():
                waiting.came.set()

    def _receive(self) -> bytes:
        try:
            return self._connection.receive()
        except (OSError, ValueError):
            return b""

    def _text(self, what: str, problem: str) -> str:
        return f"{what}: the agent in machine {self._machine.name} {problem}"


class _NoAnswer(ProvisionError):
    """The agent did not answer in time."""


@contextmanager
def running_agent(machine: Machine) -> Iterator[AgentClient]:
    """The agent in a machine: the one that its carrier started with it, or else one by a command.

    The latter ends on exit; what it made stays in the machine unless it was told to unmake it.
    """
    if machine.agent:
        yield machine.agent
        return
    program = offer_agent(machine.shared.here, None)
    log = machine.shared.here / "agent.log"
    with log.open("ab") as errors:
        proc = subprocess.Popen(
            machine.argv(["python3", "-I", str(machine.shared.path_there(program))]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    machine.agent = AgentClient(machine, _Pipe(proc), started=False)
    try:
        yield machine.agent
    finally:
        machine.agent.close()
        machine.agent = None


def offer_agent(shared: Path, port: str | None) -> Path:
    """Put the agent's program into a shared directory; return its path.

    :param port: the machine's name of the serial port; for this, the image's init starts it
    """
    directory = shared / _DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / _PROGRAM
    program.write_bytes(_packed())
    if port:
        (directory / _PORT).write_text(port)
    return program


def _packed() -> bytes:
    """The agent as a program of one file; not compressed, since that would cost more to undo."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("smbdirect_testbed/__init__.py", "")
        for file in sorted(_PACKAGE.glob("*.py")):
            if file.name == "__main__.py":
                archive.writestr(file.name, file.read_bytes())
            else:
                archive.writestr(f"smbdirect_testbed/agent/{file.name}", file.read_bytes())
    return packed.getvalue()


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


class _Pipe:
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
