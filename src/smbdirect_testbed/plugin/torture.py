"""smbtorture for scenarios: every test of a suite becomes a result of its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smbdirect_testbed.errors import CommandFailed
from smbdirect_testbed.expectations import Expectations, Judgement
from smbdirect_testbed.results import Outcome
from smbdirect_testbed.smbtorture import parse
from smbdirect_testbed.spec import Transport

if TYPE_CHECKING:
    from smbdirect_testbed.host import Host
    from smbdirect_testbed.smb.server import SmbServer

_TIMEOUT = 300.0
_OPTIONS = ("--option=torture:timelimit=2",)
"""The benchmarks among the tests run for this many seconds instead of 10."""


def expectations_of(item: pytest.Item) -> Path:
    """The data file for scenarios that use smbtorture."""
    return item.path.parent / "smbtorture" / "knownfail.toml"


class TortureFailed(AssertionError):
    """A run of smbtorture whose results cannot be trusted as a whole."""


class Torture:
    """Runs suites of smbtorture from the client against a server.

    :param item: the scenario
    :param logs: where smbtorture's output goes
    :param notes: takes lines about expectations that match nothing
    """

    def __init__(
        self, item: pytest.Item, client: Host, server: SmbServer, logs: Path, notes: list[str]
    ) -> None:
        self._item = item
        self._client = client
        self._server = server
        self._logs = logs
        self._notes = notes
        self.expectations = Expectations.load(expectations_of(item))

    def run(
        self,
        suite: str,
        transport: Transport,
        *,
        tests: Sequence[str] = (),
        timeout: float = _TIMEOUT,
    ) -> None:
        """Run a suite over a transport and report each of its tests.

        A test that fails unexpectedly is a failure of its own, not one of the scenario.

        :param tests: those of the suite to run; all unless named
        :raises TortureFailed: smbtorture crashed, ended too early or contradicts itself
        :raises MachineDied: the machine stopped running
        """
        command = self._command(transport, [f"{suite}.{t}" for t in tests] or [suite])
        try:
            done = self._client.run(command, timeout=timeout, check=False)
            status: int | None = done.status
            stdout, stderr = done.stdout, done.stderr
        except CommandFailed as e:
            status, stdout, stderr = None, e.output, ""
        (self._logs / f"{suite}-{transport}.subunit").write_text(stdout)
        (self._logs / f"{suite}-{transport}.log").write_text(stderr)
        output = parse(stdout.encode())
        if tests:  # smbtorture announces whole suites only
            output = dataclasses.replace(output, announced=len(tests))
        for test in output.tests:
            self._report(suite, transport, self.expectations.judge(suite, transport, test))
        if status is None:
            raise TortureFailed(f"smbtorture {suite} did not end in {timeout:g} s")
        if problems := output.problems(status):
            last = "\n".join(stderr.rstrip().splitlines()[-20:])
            raise TortureFailed(f"smbtorture {suite}: {'; '.join(problems)}\n{last}".rstrip())
        for note in self.expectations.unmatched(suite, transport, output.tests):
            if not tests and note not in self._notes:
                self._notes.append(note)

    def _command(self, transport: Transport, suites: Sequence[str]) -> list[str]:
        server = self._server
        return server.samba.command(
            [
                "smbtorture",
                server.unc(self._client),
                f"--user={server.account.user}%{server.account.password}",
                f"--option=client smb transports={server.samba.spelt([transport])}",
                *_OPTIONS,
                "--format=subunit",
                *suites,
            ]
        )

    def _report(self, suite: str, transport: Transport, judged: Judgement) -> None:
        """Put a test through pytest's reporting, as if it had been collected."""
        file = self._item.nodeid.partition("::")[0]
        name = f"{suite}::{judged.name}[{transport}]"
        id, location = f"{file}::{name}", (file, None, name)
        hook = self._item.ihook
        hook.pytest_runtest_logstart(nodeid=id, location=location)
        for when in ("setup", "call", "teardown"):
            report = pytest.TestReport(
                id, location, {}, "passed", None, when, start=time.time(), stop=time.time()
            )
            report.suite = f"{suite}[{transport}]"  # type: ignore[attr-defined]
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
