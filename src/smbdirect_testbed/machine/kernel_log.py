"""A machine's kernel log, divided by markers; the kernel's reports, attributed by them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import BinaryIO
from uuid import uuid4

from smbdirect_testbed.kernel.splats import Splat, find_splats
from smbdirect_testbed.lib.errors import MachineDied, ProvisionError
from smbdirect_testbed.lib.wait import wait_until
from smbdirect_testbed.machine.machine import Machine

_BEFORE = 1 << 16
"""Bytes of the log before a mark in which a report may have begun that goes on after it."""


@dataclass(frozen=True)
class Mark:
    """A point in a machine's kernel log.

    :param start: bytes of the console before the marker
    :param end: bytes of the console up to the marker's end
    """

    label: str
    start: int
    end: int


BEGINNING = Mark("begin", 0, 0)
"""Before all that a kernel said."""


@dataclass(frozen=True)
class FoundSplat:
    """A report of the kernel in a machine's log.

    :param position: bytes of the console before the line that it begins in: the same whenever it
        is looked for, whatever has been said since
    """

    position: int
    splat: Splat


class HeldLog:
    """A kernel log that can be read although its machine and its file are gone.

    ::

        with environment.kernel_logs["machine"].held() as log:
            environment_is_taken_down()
            late = log.since(mark)
    """

    def __init__(self, console: BinaryIO) -> None:
        self._console = console

    def all(self) -> bytes:
        """Everything, as the console has it."""
        self._console.seek(0)
        return self._console.read()

    def since(self, mark: Mark) -> str:
        """What the kernel said after a mark."""
        self._console.seek(mark.end)
        return _text(self._console.read())


class KernelLog:
    """A machine's kernel log, divided by markers that are written into it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._numbers = count(1)
        self._run = uuid4().hex[:8]

    def mark(self, label: str, *, timeout: float = 30) -> Mark:
        """Write a marker and wait until it shows on the console.

        When the machine has died this is the console's end, at once.

        :param label: what begins or ends here, for people who read the log
        :param timeout: seconds for the marker to show
        :raises ProvisionError: the marker does not show although the machine lives
        """
        token = f"testbed-mark {self._run}{next(self._numbers):04x}"
        start = self._size()
        with suppress(MachineDied):
            self._machine.run(
                ["tee", "/dev/kmsg"], input=f"<5>{token} {label}\n".encode(), timeout=timeout
            )
        found = wait_until(
            lambda: self._find(token, start),
            f"{token} on the console",
            timeout=timeout,
            interval=0.005,
        )
        return Mark(label, *found)

    def between(self, start: Mark, end: Mark | None = None) -> str:
        """What the kernel said between two marks, or since ``start``."""
        with self._machine.console.open("rb") as console:
            console.seek(start.end)
            data = console.read() if end is None else console.read(max(0, end.start - start.end))
        return _text(data)

    @contextmanager
    def held(self) -> Iterator[HeldLog]:
        """The log, also when the machine's directory goes while the context lasts."""
        with self._machine.console.open("rb") as console:
            yield HeldLog(console)

    def splats(self, start: Mark, end: Mark | None = None) -> list[FoundSplat]:
        """The kernel's reports that begin between two marks, or since ``start``.

        A report belongs to where it begins: what it says after ``end`` is part of it all the same,
        and what an earlier one says after ``start`` is not.
        """
        begin = max(0, start.end - _BEFORE)
        with self._machine.console.open("rb") as console:
            console.seek(begin)
            data = console.read()
        if end is None and self._machine.death() is None:
            # Of a line that is being written nobody knows yet what it says.
            data = data[: data.rfind(b"\n") + 1]
        last = end.start if end else begin + len(data)
        positions = list(_line_positions(data, begin))
        found = find_splats(data.decode(errors="replace"))
        located = [FoundSplat(positions[splat.line], splat) for splat in found]
        return [f for f in located if start.end <= f.position < last]

    def _find(self, token: str, start: int) -> tuple[int, int] | None:
        dead = self._machine.death()
        with self._machine.console.open("rb") as console:
            console.seek(start)
            data = console.read()
        if (at := data.find(token.encode())) >= 0 and (end := data.find(b"\n", at)) >= 0:
            return start + data.rfind(b"\n", 0, at) + 1, start + end + 1
        if dead:
            return start + len(data), start + len(data)
        return None

    def _size(self) -> int:
        try:
            return self._machine.console.stat().st_size
        except FileNotFoundError as e:
            raise ProvisionError(f"machine {self._machine.name} has no console") from e


def _line_positions(data: bytes, begin: int) -> Iterator[int]:
    position = begin
    for line in data.split(b"\n"):
        yield position
        position += len(line) + 1


def _text(console: bytes) -> str:
    return console.decode(errors="replace").replace("\r\n", "\n")
