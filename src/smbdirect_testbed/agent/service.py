"""Requests and answers."""

from __future__ import annotations

import _thread
import os
import select
import sys
import termios
import tty
from _queue import SimpleQueue

from smbdirect_testbed.agent import census, kernel, modules
from smbdirect_testbed.agent.capture import Capture
from smbdirect_testbed.agent.cheap_imports import partial
from smbdirect_testbed.agent.clone import Clone
from smbdirect_testbed.agent.commands import PATH, Commands
from smbdirect_testbed.agent.hosts import Hosts
from smbdirect_testbed.agent.namespaces import Namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_HOME = "/root"
_BOOTED = "/run/testbed-booted"
"""Made by the image's init when it is done; the agent starts before that."""


class Agent:
    """Answers requests; what was made stays when there are no more."""

    def __init__(self, requests: int, answers: int) -> None:
        self._namespaces = Namespaces()
        self._requests = requests
        self._answers = answers
        self._commands = Commands(self._say_ended, self._namespaces)
        self._made: dict[str, Any] = {}
        """What was made, by the request that had it made: asked for once more, it is there."""
        self._writing = _thread.allocate_lock()
        self._works: SimpleQueue[tuple[int, str, dict[str, Any]]] = SimpleQueue()
        self._hosts = Hosts(self._namespaces)
        self._clone = Clone()
        capture = Capture(self._namespaces)
        hosts = self._hosts
        self._independent: dict[str, Callable[..., Any]] = {
            "load_modules": partial(modules.load, self._namespaces),
            "start_capture": capture.start_capture,
        }
        """Done at the same time as everything else, with which it has nothing to do."""
        self._in_order: dict[str, Callable[..., Any]] = {
            "make_hosts": partial(self._once, hosts.make_hosts),
            "make_links": partial(self._once, hosts.make_links),
            "place_machine_link": partial(self._once, hosts.place_machine_link),
            "make_rdma_links": partial(self._once, hosts.make_rdma_links),
            "unmake": self._unmake,
            "mark_capture": capture.mark_capture,
            "require_capture": capture.require_capture,
            "end_capture": capture.end_capture,
            "take_census": partial(census.take, self._namespaces),
            "freeze": self._freeze,
            "thaw": self._thaw,
        }
        """Done by one thread, one after the other."""
        _thread.start_new_thread(self._work, ())

    def serve(self) -> None:
        """Answer requests until their end."""
        poll = select.poll()
        poll.register(self._requests, select.POLLIN)
        self._say(0, ok="ready")
        rest = b""
        while True:
            left = self._commands.expire()
            for descriptor, _ in poll.poll(None if left is None else 1000 * left + 1):
                if descriptor != self._requests:
                    poll.unregister(descriptor)
                    self._commands.finish(descriptor)
                    continue
                try:
                    data = os.read(self._requests, 1 << 16)
                except OSError:
                    data = b""
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if (started := self._take(_parsed(line.decode()))) is not None:
                        poll.register(started, select.POLLIN)

    def _take(self, request: dict[str, Any]) -> int | None:
        """Do what a request says; returns the descriptor of a command that was started."""
        number, do, arguments = request["id"], request["do"], request["with"]
        if do == "read":
            # A request that is too long for a serial port.
            try:
                return self._take(_parsed(kernel.read(arguments["file"])))
            except (OSError, SyntaxError) as e:
                self._fail(number, do, e)
            return None
        if do in self._independent:
            _thread.start_new_thread(self._answer, (number, do, self._independent[do], arguments))
            return None
        if do in self._in_order:
            # It may take its time, and commands need not wait for it.
            self._works.put((number, do, arguments))
            return None
        try:
            if do != "run":
                raise ValueError("there is no such request")
            return self._commands.start(number, **arguments)
        except Exception as e:
            self._fail(number, do, e)
        return None

    def _work(self) -> None:
        while True:
            number, do, arguments = self._works.get()
            self._answer(number, do, self._in_order[do], arguments)

    def _answer(
        self, number: int, name: str, do: Callable[..., Any], arguments: dict[str, Any]
    ) -> None:
        try:
            result = do(**arguments)
        except Exception as e:
            self._fail(number, name, e)
        else:
            self._say(number, ok=result)

    def _fail(self, number: int, do: str, error: Exception) -> None:
        self._say(number, error=f"{do}: {type(error).__name__}: {error}")

    def _once(self, make: Callable[..., Any], **arguments: Any) -> Any:
        key = ascii([make.__name__, arguments])
        if key not in self._made:
            self._made[key] = make(**arguments)
        return self._made[key]

    def _unmake(self) -> None:
        self._hosts.unmake()
        self._made.clear()

    def _freeze(self) -> None:
        self._clone.freeze(self._holders())

    def _thaw(self, **arguments: Any) -> None:
        self._clone.thaw(self._holders(), **arguments)

    def _holders(self) -> list[int]:
        return [pid for pid in self._hosts.holders.values() if pid]

    def _say_ended(self, number: int, answer: dict[str, Any]) -> None:
        self._say(number, ok=answer)

    def _say(self, number: int, **answer: Any) -> None:
        data = ascii({"id": number, **answer}).encode() + b"\n"
        with self._writing:
            while data:
                data = data[os.write(self._answers, data) :]


def _parsed(request: str) -> dict[str, Any]:
    # A literal, from a client that may run any command here anyway.
    parsed: dict[str, Any] = eval(request, {"__builtins__": {}})
    return parsed


def _open_port(path: str) -> int:
    """Open a serial port so that it passes all bytes as they are."""
    port = os.open(path, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(port)
    settings = termios.tcgetattr(port)
    # The emulated port is as fast as it can be; but it waits for as long as four bytes would take.
    settings[4] = settings[5] = termios.B115200
    termios.tcsetattr(port, termios.TCSANOW, settings)
    return port


def main(arguments: list[str]) -> None:
    """Serve on the serial port that the argument names, or on standard input and output."""
    os.chdir(_HOME)
    # Where programs are looked for.
    os.environ["PATH"] = PATH
    if arguments:
        port = _open_port(arguments[0])
        agent = Agent(port, port)
        kernel.wait(partial(os.path.exists, _BOOTED), "the machine's init")
        agent.serve()
    else:
        Agent(sys.stdin.fileno(), sys.stdout.fileno()).serve()
