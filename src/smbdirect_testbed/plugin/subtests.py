"""Tests within a scenario, such as smbtorture's, as results of their own."""

from __future__ import annotations

import time

import pytest

from smbdirect_testbed.results.results import Outcome
from smbdirect_testbed.results.subtests import Subtest


def report_subtest(item: pytest.Item, suite: str, name: str, judged: Subtest) -> None:
    """Put a test within a scenario through pytest's reporting, as if pytest had collected it::

        report_subtest(request.node, "echo[tcp]", "echo_empty[tcp]", expectations.judge(subtest))

    :param item: the scenario that ran it
    :param suite: the suite that it counts for in the results
    :param name: its name in the results, after the file's
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


def _say(report: pytest.TestReport, judged: Subtest) -> None:
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
