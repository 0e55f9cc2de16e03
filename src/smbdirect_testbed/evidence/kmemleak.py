"""Memory that the kernel allocated and nobody knows any more: what kmemleak finds."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import PurePosixPath

from smbdirect_testbed.lib.wait import wait_until
from smbdirect_testbed.machine.machine import Machine

_CONTROL = PurePosixPath("/sys/kernel/debug/kmemleak")
_SCAN = 'echo scan >"$0"'
_SCAN_SECONDS = 120
_INTERVAL = 0.5
_YOUNG_SECONDS = 5.5
"""What is younger is not reported: its address may still be in a register (``MSECS_MIN_AGE`` in
``mm/kmemleak.c``, and a margin)."""


class LeakDetector:
    """kmemleak in a machine's kernel.

    It tells what it finds in the kernel's log, once, with the place of the allocation: there it is
    seen like every other report, and fails the scenario in which it was looked for. With
    ``kmemleak.verbose=1`` on the kernel's command line.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def is_there(self) -> bool:
        """Whether the kernel has it, and has it switched on."""
        command = ["sh", "-c", f"{_SCAN} && echo there", str(_CONTROL)]
        return "there" in self._machine.run(command, check=False, timeout=_SCAN_SECONDS).stdout

    def scan(self) -> None:
        """Look for leaks among what was allocated more than five seconds ago."""
        self._machine.run(["sh", "-c", _SCAN, str(_CONTROL)], timeout=_SCAN_SECONDS)

    def scan_all(self) -> None:
        """Look for leaks among all that has been allocated until now; this takes some seconds."""
        young_until = self._uptime() + _YOUNG_SECONDS
        wait_until(
            lambda: self._uptime() >= young_until,
            "allocations to be old enough for kmemleak",
            timeout=10 * _YOUNG_SECONDS,
            interval=_INTERVAL,
        )
        self.scan()

    def _uptime(self) -> float:
        return float(self._machine.run(["cat", "/proc/uptime"]).stdout.split()[0])


class LeakDetectors:
    """kmemleak in those of a run's machines whose kernel has it."""

    def __init__(self, machines: Iterable[Machine]) -> None:
        self._machines = list(machines)

    @cached_property
    def found(self) -> list[LeakDetector]:
        """One for each of those machines; they are asked once, when somebody wants to know."""
        return [d for d in map(LeakDetector, self._machines) if d.is_there()]
