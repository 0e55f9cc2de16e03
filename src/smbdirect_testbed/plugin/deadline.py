"""Deadlines of scenarios: none stands still for longer than it can take."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import pytest

_LEAST, _FACTOR = 12.0, 5.0
"""Seconds that each scenario has, and how much of its usual time it has besides."""
_UNKNOWN, _UNKNOWN_SUITE = 75.0, 330.0
"""Seconds of a scenario that never passed; the latter for those with smbtorture's suites, which
have a deadline of their own just below."""
_ENOUGH = 3
"""Scenarios after which their times say how slow this computer is now."""


class Deadlines:
    """How many seconds a scenario may take, from how long it usually does::

        @pytest.mark.deadline(900)      # one whose time depends on a setting
        def test_fuzz(): ...

    A computer that is busy, or slower than the one before, makes them later: by its load, and by
    how much longer than usual the scenarios of this run took that passed.

    :param usual: seconds by a scenario's id
    """

    def __init__(self, usual: Mapping[str, float]) -> None:
        self._usual = usual
        self._ratios: list[float] = []

    def of(self, item: pytest.Item) -> float:
        """The seconds that a scenario may take."""
        if marker := item.get_closest_marker("deadline"):
            return float(marker.args[0]) * self.slowness()
        if item.nodeid in self._usual:
            return (_LEAST + _FACTOR * self._usual[item.nodeid]) * self.slowness()
        suite = "torture" in getattr(item, "fixturenames", ())
        return (_UNKNOWN_SUITE if suite else _UNKNOWN) * self.slowness()

    def took(self, id: str, seconds: float) -> None:
        """A scenario passed."""
        if usual := self._usual.get(id):
            self._ratios.append(seconds / usual)

    def slowness(self) -> float:
        """How many times longer than usual things take; at least 1."""
        busy = os.getloadavg()[0] / (os.cpu_count() or 1) / 2
        seen = statistics.median(self._ratios) if len(self._ratios) >= _ENOUGH else 1.0
        return max(1.0, busy, seen)


class Watchdog:
    """Does something in a thread of its own when a scenario takes too long.

    :param late: is given the scenario's id and the seconds that it had
    """

    def __init__(self, late: Callable[[str, float], None]) -> None:
        self._late = late
        self._changed = threading.Condition()
        self._watched: tuple[str, float, float] | None = None
        self._over = False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()

    def begin(self, id: str, seconds: float) -> None:
        """A scenario begins, and has so many seconds."""
        with self._changed:
            self._watched = (id, seconds, time.monotonic() + seconds)
            self._changed.notify()

    def end(self) -> None:
        """The scenario has ended."""
        with self._changed:
            self._watched = None
            self._changed.notify()

    def _watch(self) -> None:
        while not self._over:
            late = None
            with self._changed:
                left = self._watched[2] - time.monotonic() if self._watched else None
                if left is None or left > 0:
                    self._changed.wait(left)
                elif self._watched:
                    late, self._watched = self._watched, None
            if late:
                self._late(late[0], late[1])
