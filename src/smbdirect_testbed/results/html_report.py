"""``report.html``: one self-contained page about a run, failures and their evidence first."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from smbdirect_testbed.lib.printable import printable
from smbdirect_testbed.results.results import Outcome, RunResults, ScenarioResult, shortened

_TAIL_LINES = 40
_TAIL_BYTES = 8192
_MOST_FAILURES = 100
"""Failures shown with evidence; all are in the table."""
_SHOWN_SUFFIXES = (".log", ".json", ".txt")


@dataclass(frozen=True)
class EvidenceFile:
    """A file that a scenario left.

    :param path: below the run's directory
    :param tail: its last lines, when they are to be shown
    """

    path: str
    size: int
    tail: str


@dataclass(frozen=True)
class Failure:
    """A scenario that failed, with its evidence."""

    result: ScenarioResult
    files: list[EvidenceFile]


@dataclass(frozen=True)
class FileSection:
    """The scenarios of one file."""

    name: str
    scenarios: list[ScenarioResult]

    def count(self, outcome: Outcome) -> int:
        """The number of scenarios with an outcome."""
        return sum(s.outcome is outcome for s in self.scenarios)

    @property
    def seconds(self) -> float:
        """How long they took; tests of smbtorture are part of the scenario that ran them."""
        return sum(s.seconds for s in self.scenarios if not s.suite)


def write_report(results: RunResults) -> None:
    """Write ``report.html`` into the run's directory."""
    (results.directory / "report.html").write_text(render(results), errors="replace")


def render(results: RunResults) -> str:
    """The page's HTML. The template engine escapes all text from logs and messages."""
    template = Environment(
        loader=PackageLoader("smbdirect_testbed.results"),
        autoescape=True,
        finalize=lambda value: printable(value) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.j2")
    failures = results.failures()
    shown: dict[str, Any] = {
        "results": results,
        "command": shlex.join(results.command),
        "outcomes": [o for o in Outcome if any(s.outcome is o for s in results.scenarios)],
        "failures": [_failure(results.directory, f) for f in failures[:_MOST_FAILURES]],
        "more_failures": max(0, len(failures) - _MOST_FAILURES),
        "files": [
            FileSection(name, list(scenarios))
            for name, scenarios in groupby(
                sorted(results.scenarios, key=lambda s: s.file), key=lambda s: s.file
            )
        ],
        "run_files": [
            *(p for p in _RUN_FILES if (results.directory / p).exists()),
            *sorted(p.name for g in _RUN_PARTS for p in results.directory.glob(g)),
        ],
    }
    return template.render(shown)


_RUN_FILES = ("junit.xml", "run.json", "kernel.log", "smbd", "ksmbd", "scenarios", "tcpdump")
_RUN_PARTS = ("part-*", "kernel-*.log")


def _failure(directory: Path, result: ScenarioResult) -> Failure:
    # The tests of one suite share their scenario's files, which are shown once.
    return Failure(result, list(_files(directory, result.directory, tails=not result.suite)))


def _files(directory: Path, below: str, *, tails: bool) -> Iterator[EvidenceFile]:
    if not below:
        return
    for path in sorted((directory / below).rglob("*")):
        if path.is_file():
            name = path.relative_to(directory).as_posix()
            yield EvidenceFile(name, path.stat().st_size, _tail(path) if tails else "")


def _tail(path: Path) -> str:
    if path.suffix not in _SHOWN_SUFFIXES:
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return shortened("\n".join(text.splitlines()[-_TAIL_LINES:]), _TAIL_BYTES)
