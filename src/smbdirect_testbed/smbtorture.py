"""What smbtorture's subunit output says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import subunit
import testtools

_LONGEST_DETAIL = 16384


class Outcome(StrEnum):
    """What smbtorture says of a test."""

    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"
    SKIP = "skip"


@dataclass(frozen=True)
class TortureTest:
    """One test of a suite.

    :param detail: what smbtorture says about a failure or a skip
    """

    name: str
    outcome: Outcome
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class TortureOutput:
    """A parsed run of a suite.

    :param announced: how many tests smbtorture said it would run; None if it did not say
    :param unreadable: a line that is not subunit, if there is one
    """

    tests: tuple[TortureTest, ...]
    announced: int | None
    unreadable: str = ""

    def problems(self, status: int) -> list[str]:
        """Why the output cannot be trusted as a whole, given smbtorture's exit status.

        smbtorture ends with 0 when no test failed and with 1 when one did.
        """
        found = []
        if self.unreadable:
            found.append(f"the results cannot be read: {self.unreadable!r}")
        if not self.tests:
            found.append("smbtorture produced no results")
        elif self.announced is not None and len(self.tests) < self.announced:
            found.append(
                f"the results are truncated: {len(self.tests)} of {self.announced} tests reported"
            )
        failed = any(t.outcome in (Outcome.FAILURE, Outcome.ERROR) for t in self.tests)
        if status < 0 or status > 1:
            found.append(f"smbtorture ended with status {status}{_signal(status)}")
        elif status == 1 and self.tests and not failed:
            found.append("smbtorture ended with status 1 although no test failed")
        elif status == 0 and failed:
            found.append("smbtorture ended with status 0 although a test failed")
        return found


def _signal(status: int) -> str:
    number = -status if status < 0 else status - 128
    return f" (signal {number})" if 0 < number < 65 else ""


def parse(stream: bytes) -> TortureOutput:
    """Read what ``smbtorture --format=subunit`` wrote: the line protocol, version 1.

    A test that began and has no end, because the stream stops, becomes an error.
    """
    result = _Collector()
    server = subunit.TestProtocolServer(result, stream=subunit.DiscardStream())
    unreadable = ""
    for line in stream.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break  # cut off
        try:
            server.lineReceived(line)
        except ValueError:  # a time or number that is none, text that is not UTF-8
            unreadable = unreadable or line[:200].decode(errors="replace").rstrip()
    server.lostConnection()
    return TortureOutput(tuple(result.tests), result.announced, unreadable)


class _Collector(testtools.TestResult):
    """Gathers what subunit's parser reports."""

    def __init__(self) -> None:
        super().__init__()
        self.tests: list[TortureTest] = []
        self.announced: int | None = None
        self._clock: datetime | None = None
        self._begun: datetime | None = None

    def progress(self, offset: int | None, whence: int) -> None:
        if whence == subunit.PROGRESS_SET and offset is not None:
            self.announced = (self.announced or 0) + offset

    def time(self, a_datetime: datetime | None) -> None:
        super().time(a_datetime)
        self._clock = a_datetime

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        self._begun = self._clock

    def addSuccess(self, test: Any, details: Any = None) -> None:
        self._add(test, Outcome.SUCCESS, details)

    def addUnexpectedSuccess(self, test: Any, details: Any = None) -> None:
        self._add(test, Outcome.SUCCESS, details)

    def addFailure(self, test: Any, err: Any = None, details: Any = None) -> None:
        self._add(test, Outcome.FAILURE, details)

    def addExpectedFailure(self, test: Any, err: Any = None, details: Any = None) -> None:
        self._add(test, Outcome.FAILURE, details)

    def addError(self, test: Any, err: Any = None, details: Any = None) -> None:
        lost = details is None
        self._add(
            test,
            Outcome.ERROR,
            details,
            "the results stop in this test: smbtorture crashed or was stopped" if lost else "",
        )

    def addSkip(self, test: Any, reason: Any = None, details: Any = None) -> None:
        self._add(test, Outcome.SKIP, details, str(reason or ""))

    def _add(self, test: Any, outcome: Outcome, details: Any, text: str = "") -> None:
        seconds = 0.0
        if self._begun and self._clock:
            seconds = (self._clock - self._begun).total_seconds()
        said = [c.as_text().strip() for c in (details or {}).values()]
        detail = "\n".join([*said, text] if text else said)[:_LONGEST_DETAIL]
        self.tests.append(TortureTest(test.id(), outcome, seconds, detail))
