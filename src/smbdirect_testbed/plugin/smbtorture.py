"""smbtorture for scenarios: every test of a suite becomes a result of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smbdirect_testbed.config.spec import Transport
from smbdirect_testbed.lib.errors import CommandFailed, UsageError
from smbdirect_testbed.plugin.subtests import report_subtest
from smbdirect_testbed.results.knownfail import Expectations
from smbdirect_testbed.results.subtests import Subtest, name_within

if TYPE_CHECKING:
    from smbdirect_testbed.machine.host import Host
    from smbdirect_testbed.smb.smbd import Smbd

_FIXTURE = "torture"
_TIMEOUT = 300.0
"""Seconds."""
_OPTIONS = ("--option=torture:timelimit=2",)
"""The benchmarks among the tests run for this many seconds instead of 10."""


def _expectations_of(item: pytest.Item) -> Expectations:
    """What is expected of smbtorture in a scenario; nothing without a file that says so.

    :raises UsageError: the file is not right
    """
    path = item.path.parent / "smbtorture" / "knownfail.toml"
    return Expectations.load(path) if path.exists() else Expectations(path, ())


def check_expectations(items: Sequence[pytest.Item]) -> None:
    """Raise :class:`pytest.UsageError` for a file of expectations that is not right."""
    try:
        for item in {i.path.parent: i for i in items if _FIXTURE in _fixtures(i)}.values():
            _expectations_of(item)
    except UsageError as e:
        raise pytest.UsageError(e.message) from e


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())


class TortureFailed(AssertionError):
    """A run of smbtorture whose results cannot be trusted as a whole.

    ::

        with pytest.raises(TortureFailed):
            torture.run("smb2.pigeon", Transport.TCP)
    """


class Torture:
    """Runs suites of smbtorture from the client against a server.

    What is expected to fail is in ``smbtorture/knownfail.toml`` beside the scenario's file; without
    that file nothing is.

    ::

        torture.run("smb2.lock", Transport.SMBDIRECT)
        torture.run("smb2.rw", Transport.TCP, tests=["rw1", "rw2"])

    :param item: the scenario
    :param logs: where smbtorture's output goes
    :param notes: takes lines about expectations that match nothing
    """

    def __init__(
        self, item: pytest.Item, client: Host, server: Smbd, logs: Path, notes: list[str]
    ) -> None:
        self._item = item
        self._client = client
        self._server = server
        self._logs = logs
        self._notes = notes
        self.expectations = _expectations_of(item)

    def run(
        self,
        suite: str,
        transport: Transport,
        *,
        tests: Sequence[str] = (),
        crowded: Sequence[str] = (),
        timeout: float = _TIMEOUT,
    ) -> None:
        """Run a suite over a transport and report each of its tests.

        A test that fails unexpectedly is a failure of its own, not one of the scenario.

        Tests that may fail run apart, after the others. One that fails leaves its files open, and
        the next one, with a connection of its own, may meet them: smbd hears of the end of a
        connection only after smbtorture has gone on.

        Crowded ones run at the very end. They leave dozens of connections, and on a busy computer
        smbtorture gives up the next one before the kernel has closed them: it waits for 5 s.

        :param tests: those of the suite to run; all unless named
        :param crowded: those among them that open dozens of connections at once
        :param timeout: seconds for each of the three
        :raises TortureFailed: smbtorture crashed, ended too early or contradicts itself
        :raises ProvisionError: smbd did not let go of smbtorture's connections
        :raises MachineDied: the machine stopped running
        """
        rdma = self._client.end_towards(self._server.host).rdma
        expected = self.expectations.about(suite, transport, rdma=rdma)
        named = [f"{suite}.{t}" for t in tests] or (
            self._tests_of(suite) if expected.entries or crowded else [suite]
        )
        last = [n for n in named if name_within(suite, n) in crowded]
        if len(last) < len(crowded):
            raise TortureFailed(f"not all that are crowded are tests of {suite}: {list(crowded)}")
        apart = [n for n in named if n not in last and expected.entry(name_within(suite, n))]
        others = [n for n in named if n not in (*apart, *last)]
        ran: list[Subtest] = []
        if others:
            ran += self._run(suite, transport, others, expected, timeout)
        for after in filter(None, (apart, last)):
            ran += self._run(suite, transport, after, expected, timeout)
            self._server.wait_until_idle()
        for note in expected.unmatched(ran):
            if not tests and note not in self._notes:
                self._notes.append(note)

    def _run(
        self,
        suite: str,
        transport: Transport,
        tests: list[str],
        expected: Expectations,
        timeout: float,
    ) -> Sequence[Subtest]:
        """Run tests of a suite, by their full names, and report each; see :meth:`run`."""
        command = self._command(transport, tests)
        try:
            done = self._client.run(command, timeout=timeout, check=False)
            status: int | None = done.status
            stdout, stderr = done.stdout, done.stderr
        except CommandFailed as e:
            status, stdout, stderr = None, e.output, ""
        for end, text in (("subunit", stdout), ("log", stderr)):
            with (self._logs / f"{suite}-{transport}.{end}").open("a") as file:
                file.write(text)
        from smbdirect_testbed.results.subunit import parse

        output = parse(stdout.encode(), suite)
        if tests != [suite]:  # smbtorture announces whole suites only
            output = dataclasses.replace(output, announced=len(tests))
        for test in output.tests:
            judged = expected.judge(test)
            name = f"{suite}::{judged.name}[{transport}]"
            report_subtest(self._item, f"{suite}[{transport}]", name, judged)
        if status is None:
            raise TortureFailed(f"smbtorture {suite} did not end in {timeout:g} s")
        if problems := output.problems(status):
            last = "\n".join(stderr.rstrip().splitlines()[-20:])
            raise TortureFailed(f"smbtorture {suite}: {'; '.join(problems)}\n{last}".rstrip())
        return output.tests

    def _tests_of(self, suite: str) -> list[str]:
        """The full names of a suite's tests, in their order: ``smb2.rw.rw1``.

        :raises TortureFailed: smbtorture knows of none
        """
        done = self._client.run(["smbtorture", "--list", suite], check=False)
        names = []
        for line in done.stdout.splitlines():
            if line.startswith(f"{suite}."):  # it lists smb2.create_no_streams, too
                case, _, test = line.rpartition(".")
                # A test that is alone in its case has its name.
                names.append(case if case.rpartition(".")[2] == test else line)
        if not names:
            raise TortureFailed(f"smbtorture lists no tests of {suite}\n{done.output}".rstrip())
        return names

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
                "--fullname",
                *suites,
            ]
        )
