"""How failures read in reports: the testbed's own errors in plain words, what was found on top."""

from __future__ import annotations

from pathlib import Path

import pytest

from smbdirect_testbed.evidence.capture import TransportNotProven
from smbdirect_testbed.lib.errors import TestbedError


def text_of(error: Exception) -> str:
    """All that an error says: message, hint, detail."""
    if not isinstance(error, TestbedError):
        return str(error)
    return "\n".join(part for part in (error.message, error.hint, error.detail) if part)


def explain(
    report: pytest.TestReport, item: pytest.Item, info: pytest.ExceptionInfo[BaseException]
) -> None:
    """Say in plain words what does not need a traceback of the testbed."""
    if not isinstance(info.value, TestbedError | TransportNotProven):
        return
    text = text_of(info.value)
    here = [entry for entry in info.traceback if Path(entry.path) == item.path]
    if here:
        text += f"\n\n{item.nodeid.partition('::')[0]}:{here[-1].lineno + 1}"
    report.longrepr = text


def fail(report: pytest.TestReport, message: str) -> None:
    """Make a report one of a failure; what it said before stays below."""
    before = f"\n\n{report.longreprtext}" if report.failed else ""
    report.outcome, report.longrepr = "failed", f"{message}{before}"
