"""Expectations of smbtorture's tests and of the echo suite's checks.

The levels are Samba's. A *knownfail* test must fail: if it passes, that is an error, so the list
stays correct. A *flapping* test may pass or fail. The entries come from a data file with one
``[[expect]]`` table each.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from smbdirect_testbed.config.spec import RdmaType, Transport
from smbdirect_testbed.lib.errors import UsageError
from smbdirect_testbed.results.results import Outcome
from smbdirect_testbed.results.subtests import Subtest

_Text = Annotated[str, Field(min_length=1)]


class Level(StrEnum):
    """The expectation of a test."""

    KNOWNFAIL = "knownfail"
    FLAPPING = "flapping"


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class Expectation:
    """One entry.

    :param suite: smbtorture's name of the suite: ``smb2.create``; or ``echo``
    :param tests: names of its tests, or patterns like the shell's for file names
    :param reason: why it is expected
    :param transports: those it holds for; empty for all
    :param rdma: types of the RDMA link it holds for; empty for all, and for no link
    """

    suite: _Text
    tests: Annotated[tuple[_Text, ...], Field(min_length=1)]
    level: Level
    reason: _Text
    transports: tuple[Transport, ...] = ()
    rdma: tuple[RdmaType, ...] = ()

    def concerns(self, suite: str, transport: Transport, rdma: RdmaType | None) -> bool:
        """Whether this is about a suite over a transport, on an RDMA link of a type."""
        return (
            suite == self.suite
            and (not self.transports or transport in self.transports)
            and (not self.rdma or rdma in self.rdma)
        )


_ENTRIES = TypeAdapter(dict[str, list[Expectation]])


@dataclass(frozen=True)
class Expectations:
    """What is expected of tests: the entries of a file such as ``knownfail.toml``::

        expected = Expectations.load(path).about("smb2.lock", Transport.SMBDIRECT)
        judged = expected.judge(Subtest("rw-none", Outcome.FAILED, seconds=0.1))

    :param path: the file, for messages
    """

    path: Path
    entries: tuple[Expectation, ...]

    @classmethod
    def load(cls, path: Path) -> Expectations:
        """Read a data file.

        :raises UsageError: it is missing or wrong, with the place
        """
        try:
            data = tomllib.loads(path.read_text())
        except OSError as e:
            raise UsageError(f"{path}: {e.strerror}") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise UsageError(f"{path}: {e}") from e
        if unknown := data.keys() - {"expect"}:
            raise UsageError(f"{path}: unknown key {sorted(unknown)[0]}; entries are [[expect]]")
        try:
            entries = _ENTRIES.validate_python(data).get("expect", [])
        except ValidationError as e:
            error = e.errors()[0]
            where = " ".join(
                str(part + 1 if isinstance(part, int) else part) for part in error["loc"]
            )
            raise UsageError(f"{path}: {where}: {error['msg']}") from e
        return cls(path, tuple(entries))

    def about(
        self, suite: str, transport: Transport, *, rdma: RdmaType | None = None
    ) -> Expectations:
        """The expectations about a suite over a transport.

        :param rdma: the type of the RDMA link between client and server
        """
        entries = tuple(e for e in self.entries if e.concerns(suite, transport, rdma))
        return Expectations(self.path, entries)

    def entry(self, test: str) -> Expectation | None:
        """The first entry about a test, by the test's name."""
        for entry in self.entries:
            if any(fnmatchcase(test, pattern) for pattern in entry.tests):
                return entry
        return None

    def judge(self, test: Subtest) -> Subtest:
        """The test with its outcome after comparison with the expectation."""
        entry = self.entry(test.name)
        if test.outcome is Outcome.PASSED and entry and entry.level is Level.KNOWNFAIL:
            message = (
                f"passed, but {self.path.name} says that it fails: {entry.reason}\n"
                f"Remove it from {self.path}."
            )
            return replace(test, outcome=Outcome.FAILED, message=message)
        if test.outcome is not Outcome.FAILED:
            return test
        # A test that broke is not an expected failure: smbtorture crashed, or could not begin.
        if entry and not test.broken:
            message = f"{entry.level}: {entry.reason}\n{test.message}".rstrip()
            return replace(test, outcome=Outcome.KNOWNFAIL, message=message)
        return replace(test, message=test.message or "it failed without a message")

    def unmatched(self, tests: Sequence[Subtest]) -> list[str]:
        """The patterns that match none of the tests of a full run."""
        return [
            f"{entry.suite}: no test is named {pattern}"
            for entry in self.entries
            for pattern in entry.tests
            if not any(fnmatchcase(test.name, pattern) for test in tests)
        ]
