"""The testbed's side of :mod:`smbdirect_testbed.agent`."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from smbdirect_testbed import process
from smbdirect_testbed.errors import ProvisionError
from smbdirect_testbed.machine import Machine

_PROGRAM = Path(__file__).with_name("agent.py")
_PORT_THERE = "/dev/ttyS1"
_LOG_THERE = "/run/testbed-agent.log"
_TIMEOUT = 90.0
"""Seconds for one answer: Python and pyroute2 take up to 10 s to start under TCG."""


class _Connection(Protocol):
    def fileno(self) -> int: ...
    def send(self, data: bytes) -> None: ...
    def receive(self) -> bytes: ...


class AgentClient:
    """Sends requests to the agent in a machine.

    An agent may be starting in the background: then the first request waits until it is ready.

    :param started: the agent runs already
    """

    def __init__(self, machine: Machine, connection: _Connection, *, started: bool) -> None:
        self._machine = machine
        self._connection = connection
        self._ready = started
        self._received = b""
        # Not from 1: an answer to someone who asked before us may still come.
        self._numbers = count(time.monotonic_ns())
        self._lock = threading.Lock()

    def call(self, do: str, **arguments: Any) -> Any:
        """Have the agent do something and return its answer. Safe to use from several threads.

        :raises ProvisionError: the agent failed, with its reason
        :raises MachineDied: the machine stopped running
        """
        with self._lock:
            return self._call(do, arguments)

    def _call(self, do: str, arguments: dict[str, Any]) -> Any:
        if not self._ready:
            self._answer(0, "starting the agent")
            self._ready = True
        number = next(self._numbers)
        request = {"id": number, "do": do, "with": arguments}
        try:
            self._connection.send(json.dumps(request).encode() + b"\n")
        except OSError as e:
            self._machine.raise_if_dead()
            raise self._error(do, f"cannot be reached: {e}") from e
        return self._answer(number, do)

    def _answer(self, number: int, what: str) -> Any:
        deadline = time.monotonic() + _TIMEOUT
        while True:
            answer = json.loads(self._line(deadline, what))
            if answer["id"] != number:
                continue
            if "error" in answer:
                raise ProvisionError(f"machine {self._machine.name}: {answer['error']}")
            return answer["ok"]

    def _line(self, deadline: float, what: str) -> bytes:
        while b"\n" not in self._received:
            left = max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([self._connection], [], [], min(left, 0.5))
            data = self._connection.receive() if readable else b""
            if not data:
                self._machine.raise_if_dead()
                if readable:
                    raise self._error(what, "ended")
                if not left:
                    raise self._error(what, f"did not answer in {_TIMEOUT:g} s")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _error(self, what: str, problem: str) -> ProvisionError:
        return ProvisionError(f"{what}: the agent in machine {self._machine.name} {problem}")


@contextmanager
def running_agent(machine: Machine) -> Iterator[AgentClient]:
    """Have an agent in a machine, without waiting for it to start.

    On exit it ends, unless it is on a serial port: then it is there as long as the machine. What
    it made stays in the machine unless it was told to unmake it.
    """
    if machine.agent:
        yield machine.agent
        return
    if machine.agent_port is None:
        with _on_a_pipe(machine) as agent:
            yield agent
        return
    with AgentPort(machine.agent_port) as port:
        if not machine.agent_started:
            program = machine.shared.path_there(_copy(machine))
            start = (
                f'exec setsid --fork python3 -P "$0" {_PORT_THERE} </dev/null >{_LOG_THERE} 2>&1'
            )
            machine.run(["sh", "-c", start, str(program)])
        yield AgentClient(machine, port, started=machine.agent_started)
        machine.agent_started = True


class AgentPort:
    """A connection to a machine's serial port; there is only one at a time."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._path = path

    def __enter__(self) -> AgentPort:
        try:
            self._socket.settimeout(_TIMEOUT)
            self._socket.connect(str(self._path))
        except OSError as e:
            self._socket.close()
            raise ProvisionError(f"cannot reach the agent by {self._path}: {e.strerror}") from e
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the agent stays."""
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> bytes:
        try:
            return self._socket.recv(65536)
        except ConnectionResetError:
            return b""


class _Pipe:
    """A connection to a process that passes on what the agent reads and writes."""

    def __init__(self, proc: subprocess.Popen[bytes]) -> None:
        assert proc.stdin
        assert proc.stdout
        self._in, self._out = proc.stdin, proc.stdout

    def fileno(self) -> int:
        return self._out.fileno()

    def send(self, data: bytes) -> None:
        self._in.write(data)
        self._in.flush()

    def receive(self) -> bytes:
        return self._out.read1(65536)  # type: ignore[attr-defined, no-any-return]


@contextmanager
def _on_a_pipe(machine: Machine) -> Iterator[AgentClient]:
    program = machine.shared.path_there(_copy(machine))
    log = machine.shared.here / "agent.log"
    with log.open("ab") as errors:
        proc = subprocess.Popen(
            machine.argv(["python3", "-P", str(program)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    try:
        yield AgentClient(machine, _Pipe(proc), started=False)
    finally:
        assert proc.stdin
        assert proc.stdout
        try:
            proc.stdin.close()
            proc.wait(timeout=5)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            process.kill_group(proc)
            proc.wait()
        proc.stdout.close()


def _copy(machine: Machine) -> Path:
    copy = machine.shared.here / _PROGRAM.name
    copy.write_bytes(_PROGRAM.read_bytes())
    return copy
