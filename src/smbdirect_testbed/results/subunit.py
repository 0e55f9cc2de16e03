"""smbtorture's output, which is a stream of subunit.

This is a module of its own because the library takes long to import.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import subunit
import testtools

from smbdirect_testbed.results.results import Outcome
from smbdirect_testbed.results.subtests import Subtest, TortureOutput, name_within

_LONGEST_MESSAGE = 16384


def parse(stream: bytes, suite: str) -> TortureOutput:
    """Read the output of ``smbtorture --format=subunit --fullname``: subunit's line protocol 1.

    A test without an end, because the stream stops, is a broken one.

    :param suite: its name; tests get their names within it
    """
    result = _Collector(suite)
    server = subunit.TestProtocolServer(result, stream=subunit.DiscardStream())
    unreadable = ""
    for line in stream.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break  # cut off
        try:
            server.lineReceived(line)
        except ValueError:  # a malformed time or number, or text that is not UTF-8
            unreadable = unreadable or line[:200].decode(errors="replace").rstrip()
    server.lostConnection()
    return TortureOutput(tuple(result.tests), result.announced, unreadable)


class _Collector(testtools.TestResult):
    """Collects what subunit's parser reports."""

    def __init__(self, suite: str) -> None:
        super().__init__()
        self._suite = suite
        self.tests: list[Subtest] = []
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
        self._add(test, Outcome.PASSED, details)

    def addUnexpectedSuccess(self, test: Any, details: Any = None) -> None:
        self._add(test, Outcome.PASSED, details)

    def addFailure(self, test: Any, err: Any = None, details: Any = None) -> None:
        self._add(test, Outcome.FAILED, details)

    def addExpectedFailure(self, test: Any, err: Any = None, details: Any = None) -> None:
        self._add(test, Outcome.FAILED, details)

    def addError(self, test: Any, err: Any = None, details: Any = None) -> None:
        lost = details is None
        self._add(
            test,
            Outcome.FAILED,
            details,
            "the results stop in this test: smbtorture crashed or was stopped" if lost else "",
            broken=True,
        )

    def addSkip(self, test: Any, reason: Any = None, details: Any = None) -> None:
        self._add(test, Outcome.SKIPPED, details, str(reason or ""))

    def _add(
        self, test: Any, outcome: Outcome, details: Any, text: str = "", *, broken: bool = False
    ) -> None:
        seconds = 0.0
        if self._begun and self._clock:
            seconds = (self._clock - self._begun).total_seconds()
        said = [c.as_text().strip() for c in (details or {}).values()]
        message = "\n".join([*said, text] if text else said)[:_LONGEST_MESSAGE]
        name = name_within(self._suite, test.id())
        self.tests.append(Subtest(name, outcome, seconds, message, broken))
