"""Tests within a scenario, and smbtorture's output about a suite."""

from __future__ import annotations

from dataclasses import dataclass

from smbdirect_testbed.results.results import Outcome


@dataclass(frozen=True)
class Subtest:
    """A test within a scenario: one of smbtorture's, or a check of the echo suite::

        Subtest("rw1", Outcome.PASSED, seconds=0.2)
        Subtest("rw2", Outcome.FAILED, seconds=0.1, message="rw.c:12: expected NT_STATUS_OK")

    :param name: within its suite
    :param message: why it failed or was skipped
    :param broken: it failed before it had a result. Such a failure is never an expected one.
    """

    name: str
    outcome: Outcome
    seconds: float
    message: str = ""
    broken: bool = False


def name_within(suite: str, full: str) -> str:
    """A test's name within a suite: ``rw1`` for ``smb2.rw.rw1``.

    ``smb2.connect`` is a suite and its only test; its name is ``connect``.
    """
    return suite.rpartition(".")[2] if full == suite else full.removeprefix(f"{suite}.")


@dataclass(frozen=True)
class TortureOutput:
    """A parsed run of a suite of smbtorture.

    :param announced: how many tests smbtorture said it would run; None if it did not say
    :param unreadable: a line that is not subunit, if there is one
    """

    tests: tuple[Subtest, ...]
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
        failed = any(t.outcome is Outcome.FAILED for t in self.tests)
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
