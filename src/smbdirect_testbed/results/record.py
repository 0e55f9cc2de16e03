"""What is known of a run while it goes on: enough for its results if it is killed.

A run, and each share of one, writes ``record.jsonl`` into its directory, a line as each scenario
ends. Published results take its place. The run has a note in the state directory, and holds a lock
on that: a note whose lock nobody holds is of a run that was killed.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from smbdirect_testbed.lib import paths
from smbdirect_testbed.results.results import Outcome, RunResults, ScenarioResult, Verdict

_NAME = "record.jsonl"
_RUNS = ".runs"
"""Below the state directory: a file for each run that goes on, which names its results."""


class Record:
    """The record of a run, or of a share of one."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / _NAME).open("a")

    def close(self) -> None:
        """Let go of it; it stays until the results are published."""
        self._file.close()

    def begins(self, results: RunResults, ids: Iterable[str]) -> None:
        """The scenarios of a run begin.

        :param ids: of all that are going to run
        """
        self._write(
            run={
                "command": list(results.command),
                "started": results.started,
                "facts": dict(results.facts),
                "expected": list(ids),
            }
        )

    def ended(self, results: Iterable[ScenarioResult]) -> None:
        """Scenarios ended."""
        for result in results:
            self._write(scenario=dataclasses.asdict(result))

    def _write(self, **line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def recorded(directory: Path, reason: str) -> RunResults | None:
    """The results of a run, or of a share, that was killed; None if there is no record of one.

    :param reason: for the verdict, which is "interrupted"
    """
    lines = list(_lines(directory / _NAME))
    runs = [line["run"] for line in lines if "run" in line]
    if not runs:
        return None
    run: Mapping[str, Any] = runs[-1]
    scenarios = {id: ScenarioResult(id, Outcome.NOT_RUN, message=reason) for id in run["expected"]}
    for said in (line["scenario"] for line in lines if "scenario" in line):
        scenarios[said["id"]] = ScenarioResult(**{**said, "outcome": Outcome(said["outcome"])})
    return RunResults(
        directory,
        command=run["command"],
        started=run["started"],
        facts=run["facts"],
        scenarios=list(scenarios.values()),
        seconds=max(0.0, (directory / _NAME).stat().st_mtime - run["started"]),
        verdict=Verdict.INTERRUPTED,
        reason=reason,
    )


def shares(directory: Path) -> Sequence[Path]:
    """The directories of the shares of a run that had some."""
    return sorted(p for p in directory.glob("part-*") if p.is_dir())


def forget(directory: Path) -> None:
    """Remove the records of a run, whose results are published."""
    for place in (directory, *shares(directory)):
        (place / _NAME).unlink(missing_ok=True)


@contextmanager
def announced(directory: Path) -> Iterator[None]:
    """Have later commands find a run while the context lasts, or if it is killed meanwhile."""
    note = paths.state() / _RUNS / directory.name
    note.parent.mkdir(parents=True, exist_ok=True)
    # Processes that are forked hold the lock, too.
    with note.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(directory))
        file.flush()
        try:
            yield
        finally:
            _remove(note)


def _remove(note: Path) -> None:
    note.unlink(missing_ok=True)
    with suppress(OSError):
        note.parent.rmdir()


def killed_runs() -> Iterator[Path]:
    """The directories of runs that were killed; each is told once, when it is asked for."""
    for note in sorted((paths.state() / _RUNS).glob("*")):
        with note.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            directory = Path(file.read())
        if any((place / _NAME).exists() for place in (directory, *shares(directory))):
            yield directory
        _remove(note)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        text = file.read_text()
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return  # the last one, which was being written
