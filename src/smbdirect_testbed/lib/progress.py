"""Progress messages for the user, and the duration of each phase."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from smbdirect_testbed.lib.printable import printable
from smbdirect_testbed.lib.said import SaidOnce


@dataclass
class Progress:
    """Prints phases as they begin and end, and keeps their seconds for ``run.json``::

        with progress.phase("image", "building image trixie"):
            build()

    :param started: monotonic time at which the user's command was typed
    :param timings: seconds by phase key, in the order they ended
    :param once: of a process that is one of several of a run
    """

    started: float = field(default_factory=time.monotonic)
    timings: dict[str, float] = field(default_factory=dict)
    quiet: bool = False
    once: SaidOnce | None = None

    @classmethod
    def of_this_process(cls) -> Progress:
        """Progress that counts from the start of this process, before our imports."""
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        begun = int(ticks) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - begun
        return cls(started=time.monotonic() - age)

    @contextmanager
    def phase(self, key: str, text: str) -> Iterator[None]:
        """Announce a phase, and its seconds when it ends.

        :param key: the name under ``timings``
        :param text: the phase in words: "building image trixie"
        """
        begun = time.monotonic()
        self.say(f"{text} ...")
        try:
            yield
        except BaseException:
            self.say(f"{text}: stopped after {time.monotonic() - begun:.1f} s")
            raise
        seconds = time.monotonic() - begun
        self.timings[key] = round(self.timings.get(key, 0.0) + seconds, 3)
        self.say(f"{text}: done in {seconds:.1f} s")

    def parallel(self) -> Progress:
        """Progress of one of several parallel activities; see :meth:`join`."""
        return Progress(self.started, quiet=self.quiet, once=self.once)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Show once what several processes say that are forked in the block."""
        with SaidOnce() as self.once:
            yield
        self.once = None

    def join(self, others: Iterable[Progress]) -> None:
        """Add the phases of parallel activities: of each phase, the longest duration."""
        longest: dict[str, float] = {}
        for other in others:
            for key, seconds in other.timings.items():
                longest[key] = max(seconds, longest.get(key, 0.0))
        for key, seconds in longest.items():
            self.timings[key] = round(self.timings.get(key, 0.0) + seconds, 3)

    def say(self, text: str) -> None:
        """Print one line with the seconds since the command began."""
        if not self.quiet and (self.once is None or self.once.is_first(text)):
            # To the real standard error: pytest captures sys.stderr while a scenario runs. The line
            # is written with its end, so lines of several threads stay whole.
            line = f"[{self.elapsed():6.1f}] {printable(text)}\n"
            print(line, end="", file=sys.__stderr__, flush=True)

    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self.started
