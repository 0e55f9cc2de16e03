"""Requests and answers."""

from __future__ import annotations

import _thread
import os
import select
import sys
import termios
import tty
from _queue import SimpleQueue

from smbdirect_testbed.agent import kernel, modules
from smbdirect_testbed.agent.cheap_imports import partial
from smbdirect_testbed.agent.commands import PATH, Commands
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
        self._writing = _thread.allocate_lock()
        self._asked: SimpleQueue[tuple[int, str, dict[str, Any]]] = SimpleQueue()
        self._independent: dict[str, Callable[..., Any]] = {
            "load_modules": partial(modules.load, self._namespaces),
        }
        """Done at the same time as everything else, with which it has nothing to do; in its turn
        if it is asked for before it is here."""

    def serve(self) -> None:
        """Answer requests until their end."""
        poll = select.poll()
        poll.register(self._requests, select.POLLIN)
        self._say(0, ok="ready")
        _thread.start_new_thread(self._work, ())
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
        if do == "run":
            try:
                return self._commands.start(number, **arguments)
            except Exception as e:
                self._fail(number, do, e)
        elif independent := self._independent.get(do):
            _thread.start_new_thread(self._answer, (number, do, independent, arguments))
        else:
            # It may take its time, and commands need not wait for it.
            self._asked.put((number, do, arguments))
        return None

    def _work(self) -> None:
        # Half of the agent, and a machine that only just runs takes long to compile it: that is
        # done while the other end takes note that the agent answers. A template has all of it,
        # since the same thread freezes the machine.
        try:
            from smbdirect_testbed.agent.works import Works

            works = Works(self._namespaces)
        except BaseException:
            # Whoever asks for a work would wait for ever.
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        self._independent |= works.independent
        while True:
            number, do, arguments = self._asked.get()
            if work := works.in_order.get(do) or self._independent.get(do):
                self._answer(number, do, work, arguments)
            else:
                self._fail(number, do, ValueError("there is no such request"))

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
