"""How failures read in reports: the testbed's own errors in plain words, what was found on top."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from smbdirect_testbed.evidence.capture import TransportNotProven
from smbdirect_testbed.lib.errors import TestbedError

_PLAIN = (TestbedError, TransportNotProven)
"""Errors that need no traceback of the testbed."""


def text_of(error: BaseException) -> str:
    """All that an error says: message, hint, detail."""
    if not isinstance(error, TestbedError):
        return str(error)
    return "\n".join(part for part in (error.message, error.hint, error.detail) if part)


def explain(
    report: pytest.TestReport, item: pytest.Item, info: pytest.ExceptionInfo[BaseException]
) -> None:
    """Replace the testbed's tracebacks by plain words."""
    first, *later = causes(info.value)
    if not isinstance(info.value, _PLAIN):
        return
    text = text_of(first) if isinstance(first, _PLAIN) else f"{type(first).__name__}: {first}"
    for error in later:
        text += f"\n\nthen, while that was undone: {text_of(error)}"
    if here := [n for path, n in _frames(first) if path == item.path]:
        text += f"\n\n{item.nodeid.partition('::')[0]}:{here[-1]}"
    report.longrepr = text


def causes(error: BaseException) -> list[BaseException]:
    """An error and those before it, the first one first.

    What is raised while a context is left hides what happened within. An error that was raised
    from another one, in so many words, says it better.
    """
    found = [error]
    while (before := found[0].__context__) and not found[0].__suppress_context__:
        found.insert(0, before)
    return found


def _frames(error: BaseException) -> list[tuple[Path, int]]:
    """Where an error was on its way: files and lines."""
    return [
        (Path(frame.filename), frame.lineno or 0)
        for frame in traceback.extract_tb(error.__traceback__)
    ]


def fail(report: pytest.TestReport, message: str) -> None:
    """Make a report one of a failure; what it said before stays below."""
    before = f"\n\n{report.longreprtext}" if report.failed else ""
    report.outcome, report.longrepr = "failed", f"{message}{before}"
