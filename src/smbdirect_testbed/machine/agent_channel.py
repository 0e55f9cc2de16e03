"""Requests to an agent and its answers, over one connection, for several threads."""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from smbdirect_testbed.lib import cancel
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.machine.agent_connection import Connection
from smbdirect_testbed.machine.agent_program import DIRECTORY
from smbdirect_testbed.machine.shared_directory import SharedDirectory

TIMEOUT = 90.0
"""Seconds for one answer: Python takes seconds to start under TCG."""
_INTERVAL = 0.5
"""Seconds after which a wait looks whether the machine lives."""
_LARGE = 512
"""Bytes of a request from which on a file carries it.

That is faster than a serial port. And User Mode Linux no longer reads from one that ever held more
than 4 KiB (``line_throttle`` in ``arch/um/drivers/line.c``, which ``line_unthrottle`` undoes only
by half), so that all requests under way must be less than that together.
"""
_WITHOUT_FILES = {"freeze", "thaw"}
"""Requests that are made while the shared directory may not be there."""
_LONGEST_ANSWER = 1 << 20
"""Bytes; what is longer comes in a file, so the machine is broken or hostile."""
_SHOWN = 80
"""Bytes of an answer that is none, in the message about it."""


class AgentMachine(Protocol):
    """What a channel needs to know of the machine that the agent is in."""

    name: str
    shared: SharedDirectory

    def raise_if_dead(self) -> None:
        """Raise :class:`MachineDied` with the reason, if the machine no longer runs."""


class NoAnswer(ProvisionError):
    """The agent did not answer in time."""


@dataclass
class _Waiting:
    """Somebody who waits for an answer."""

    came: threading.Event = field(default_factory=threading.Event)
    answer: dict[str, Any] | None = None


class AgentChannel:
    """Sends requests to the agent in a machine; safe to use from several threads.

    An agent may be starting in the background: then the first request waits until it is ready.

    :param started: the agent runs already
    """

    def __init__(self, machine: AgentMachine, connection: Connection, *, started: bool) -> None:
        self._machine = machine
        self._connection = connection
        self._lock = threading.Lock()
        self._ended = False
        self._nonsense = ""
        self._waiting: dict[int, _Waiting] = {}
        self._ready = _Waiting()
        if started:
            self._ready.came.set()
        else:
            self._waiting[0] = self._ready
        # Not from 1: an answer to someone who asked before us may still come.
        self._numbers = count(time.monotonic_ns())
        self.files = machine.shared.here / DIRECTORY
        """The directory for what is too much for the connection, on this computer."""
        machine.shared.files.make_directory(DIRECTORY)
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
            cancel.point()
            watch()
            if time.monotonic() > deadline:
                return False
        watch()
        return self._ready.answer is not None

    def ask(self, do: str, arguments: dict[str, Any], *, timeout: float = TIMEOUT) -> Any:
        """Have the agent do something and return its answer.

        :param timeout: seconds that it may take
        :raises NoAnswer: it took longer
        :raises ProvisionError: the agent failed, with its reason; it ended, or said nonsense
        :raises MachineDied: the machine stopped running
        """
        self._wait(self._ready, "starting the agent", TIMEOUT)
        waiting = _Waiting()
        number = next(self._numbers)
        request = ascii({"id": number, "do": do, "with": arguments})
        file = None
        if len(request) >= _LARGE and do not in _WITHOUT_FILES:
            file = f"{DIRECTORY}/{number}.request"
            self._machine.shared.files.write(file, request)
            there = self._machine.shared.there / file
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
                self._machine.shared.files.remove(file)
        if "error" in answer:
            raise ProvisionError(f"machine {self._machine.name}: {answer['error']}")
        return answer.get("ok")

    def _wait(self, waiting: _Waiting, what: str, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while not waiting.came.wait(min(_INTERVAL, max(0.0, deadline - time.monotonic()))):
            cancel.point()
            self._machine.raise_if_dead()
            if time.monotonic() >= deadline:
                raise NoAnswer(self._text(what, f"did not answer in {timeout:g} s"))
        if waiting.answer is None and waiting is not self._ready:
            self._raise_ended(what)
        return waiting.answer or {}

    def _raise_ended(self, what: str) -> None:
        if self._nonsense:
            raise ProvisionError(self._text(what, f"sent what is no answer: {self._nonsense}"))
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
            if len(received) > _LONGEST_ANSWER:
                lines.append(received)
            for line in lines:
                try:
                    number, answer = _parsed(line)
                except _NoLiteral:
                    # Nothing after it can be trusted.
                    self._nonsense = ascii(line[:_SHOWN])
                    self._end()
                    return
                if waiting := self._waiting.get(number):
                    waiting.answer = answer
                    waiting.came.set()
        self._end()

    def _end(self) -> None:
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


class _NoLiteral(Exception):
    """A line is no answer of an agent."""


def _parsed(line: bytes) -> tuple[int, dict[str, Any]]:
    """An answer: the request's number, and what was said."""
    try:
        if len(line) > _LONGEST_ANSWER:
            raise _NoLiteral
        answer = ast.literal_eval(line.decode("ascii"))
        number = answer["id"]
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError):
        raise _NoLiteral from None
    if not (isinstance(answer, dict) and isinstance(number, int)):
        raise _NoLiteral
    return number, answer
