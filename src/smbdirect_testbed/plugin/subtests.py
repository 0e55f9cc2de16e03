"""Parts of a scenario, such as smbtorture's tests, that are results of their own."""

from __future__ import annotations

import time

import pytest

from smbdirect_testbed.results.knownfail import Judgement
from smbdirect_testbed.results.results import Outcome


def report_part(item: pytest.Item, suite: str, name: str, judged: Judgement) -> None:
    """Put a part of a scenario through pytest's reporting, as if it had been collected.

    :param item: the scenario that ran it
    :param suite: what it is one of, for the results
    :param name: of the part, after the file's
    """
    file = item.nodeid.partition("::")[0]
    id, location = f"{file}::{name}", (file, None, name)
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=id, location=location)
    for when in ("setup", "call", "teardown"):
        report = pytest.TestReport(
            id, location, {}, "passed", None, when, start=time.time(), stop=time.time()
        )
        report.suite = suite  # type: ignore[attr-defined]
        if when == "call":
            _say(report, judged)
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=id, location=location)


def _say(report: pytest.TestReport, judged: Judgement) -> None:
    report.duration = judged.seconds
    match judged.outcome:
        case Outcome.FAILED:
            report.outcome, report.longrepr = "failed", judged.message
        case Outcome.SKIPPED:
            report.outcome = "skipped"
            report.longrepr = (report.location[0], 0, f"Skipped: {judged.message}")
        case Outcome.KNOWNFAIL:
            report.outcome = "skipped"
            report.wasxfail = judged.message
