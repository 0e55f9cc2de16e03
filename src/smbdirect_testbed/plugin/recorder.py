"""From pytest's reports to results."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest

from smbdirect_testbed.results.results import Directories, Outcome, ScenarioResult

_NOT_RUN = "not run: "


def not_run_reason(reason: str) -> str:
    """The reason to give :func:`pytest.skip` for what could not run at all."""
    return f"{_NOT_RUN}{reason}"


class Recorder:
    """Keeps one result for each scenario, in the order they were collected."""

    def __init__(self) -> None:
        self._results: dict[str, ScenarioResult] = {}
        self._directories = Directories()

    def expect(self, ids: Iterable[str]) -> None:
        """These scenarios are going to run."""
        for id in ids:
            self._results[id] = ScenarioResult(id, Outcome.NOT_RUN)

    def add(self, report: pytest.TestReport) -> ScenarioResult:
        """Take in a report of one phase; return what is known of its scenario now."""
        before = self._results.get(report.nodeid, ScenarioResult(report.nodeid, Outcome.NOT_RUN))
        now = _result(report)
        # That nothing went wrong before and after it is no result, and what went wrong later is
        # none either where something went wrong already.
        final = report.when == "call" or not report.passed
        if not final or before.outcome is Outcome.FAILED:
            now = dataclasses.replace(before, seconds=before.seconds + report.duration)
        else:
            now = dataclasses.replace(now, seconds=before.seconds + report.duration)
        self._results[report.nodeid] = now
        return now

    def left(self, id: str, directory: str) -> None:
        """A scenario left something in a directory below the run's."""
        self._results[id] = dataclasses.replace(self._results[id], directory=directory)

    def directory(self, id: str) -> str:
        """The name of a scenario's directory."""
        return self._directories.name(id)

    def result(self, id: str) -> ScenarioResult:
        """What is known of a scenario."""
        return self._results[id]

    def results(self) -> list[ScenarioResult]:
        """All results."""
        return list(self._results.values())


def _result(report: pytest.TestReport) -> ScenarioResult:
    outcome = {
        "passed": Outcome.PASSED,
        "failed": Outcome.FAILED,
        "skipped": Outcome.SKIPPED,
    }[report.outcome]
    message, trace = _message(report)
    if report.skipped and hasattr(report, "wasxfail"):
        outcome, message = Outcome.KNOWNFAIL, str(report.wasxfail).removeprefix("reason: ")
    elif report.skipped and message.startswith(_NOT_RUN):
        outcome, message = Outcome.NOT_RUN, message.removeprefix(_NOT_RUN)
    output = "\n".join(
        f"{heading}:\n{content.rstrip()}" for heading, content in report.sections if content.strip()
    )
    return ScenarioResult(
        report.nodeid,
        outcome,
        report.duration,
        message,
        trace,
        output if report.failed else "",
        getattr(report, "suite", ""),
    )


def _message(report: pytest.TestReport) -> tuple[str, str]:
    """Why, and where."""
    longrepr = report.longrepr
    if longrepr is None:
        return "", ""
    if isinstance(longrepr, tuple):
        return str(longrepr[2]).removeprefix("Skipped: "), ""
    if crash := getattr(longrepr, "reprcrash", None):
        return str(crash.message), report.longreprtext
    return report.longreprtext, ""
