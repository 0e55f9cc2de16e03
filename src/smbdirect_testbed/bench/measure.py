"""Figures, and the means of taking them: runs of the command line as a user types it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smbdirect_testbed.lib.errors import ProvisionError


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    :param row: the name under which it can be asked for
    :param what: what was measured, for people
    :param unit: of all values: "s", "ms", "MiB"
    :param goal: the largest value that is good; None when there is none
    :param values: each of the measurements; empty when it could not be measured
    :param note: what else is to be known: why there are no values, how it grows
    :param points: for what depends on a number: (number, seconds)
    """

    row: str
    what: str
    unit: str
    goal: float | None
    values: tuple[float, ...] = ()
    note: str = ""
    points: tuple[tuple[float, float], ...] = field(default=())

    @property
    def median(self) -> float | None:
        """The median of the values."""
        return statistics.median(self.values) if self.values else None

    @property
    def good(self) -> bool | None:
        """Whether the median meets the goal; None when that cannot be said."""
        if self.median is None or self.goal is None:
            return None
        return self.median <= self.goal


@dataclass(frozen=True)
class Ran:
    """A run of the command line.

    :param seconds: from typing to its end
    :param record: its ``run.json``
    """

    seconds: float
    record: dict[str, Any]

    def timing(self, phase: str) -> float:
        """Seconds of a phase."""
        return float(self.record["timings"][phase])


@contextmanager
def started(arguments: Sequence[str], results: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``smbdirect-testbed run`` with arguments; ended as by Ctrl-C when the context ends before it.

    :param results: the directory for its results
    """
    argv = [sys.executable, "-m", "smbdirect_testbed", "run", *arguments]
    with (results / "output.log").open("ab") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "SMBDIRECT_TESTBED_RESULTS": str(results)},
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def run(*arguments: str) -> Ran:
    """``smbdirect-testbed run`` with arguments, to its end.

    :raises ProvisionError: not everything passed
    """
    with tempfile.TemporaryDirectory(prefix="smbdirect-testbed-bench-") as directory:
        results = Path(directory)
        begun = time.monotonic()
        with started(arguments, results) as process:
            status = process.wait()
        return Ran(time.monotonic() - begun, read_record(results, status))


def read_record(results: Path, status: int) -> dict[str, Any]:
    """The ``run.json`` of the only run that left its results in a directory.

    :raises ProvisionError: the run failed, with the end of what it said
    """
    if status:
        said = (results / "output.log").read_text(errors="replace")
        raise ProvisionError(
            f"a run to be measured ended with status {status}",
            detail="\n".join(said.splitlines()[-15:]),
        )
    (file,) = results.glob("2*/run.json")
    record: dict[str, Any] = json.loads(file.read_text())
    return record
