"""One scenario: run with a deadline, judged by what the kernel, servers and machines say."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from smbdirect_testbed.kernel.splats import Splat
from smbdirect_testbed.lib.errors import TestbedError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.plugin import known_splats, markers
from smbdirect_testbed.plugin.breakage import suspicious, unfit
from smbdirect_testbed.plugin.deadline import Deadlines, Watchdog
from smbdirect_testbed.plugin.failures import explain, fail
from smbdirect_testbed.plugin.foundations import Became
from smbdirect_testbed.plugin.hang import investigate, summary
from smbdirect_testbed.plugin.leftovers import describe_leftovers
from smbdirect_testbed.plugin.recorder import not_run_reason
from smbdirect_testbed.plugin.run_context import RunContext, State
from smbdirect_testbed.results import terminal
from smbdirect_testbed.results.record import Record
from smbdirect_testbed.results.results import Outcome, ScenarioResult


class ScenarioJudge:
    """Plugged into pytest next to :class:`RunPlugin`: runs each scenario and judges it.

    :param run_all: also run what stands on something that is red
    """

    def __init__(self, context: RunContext, progress: Progress, *, run_all: bool) -> None:
        self._context = context
        self._progress = progress
        self._run_all = run_all
        self.deadlines = Deadlines({})
        """How long scenarios may take; known when the first environment is up."""
        self._watchdog = Watchdog(self._late)
        self._record: Record | None = None
        self._touched = False
        self._hung: dict[str, str] = {}
        self._parts: list[ScenarioResult] = []

    @contextmanager
    def watching(self, record: Record) -> Iterator[None]:
        """Keep deadlines while the context lasts.

        :param record: gets the results of each scenario
        """
        self._record = record
        with self._watchdog:
            yield

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        if "first_scenario_s" not in self._progress.timings:
            self._progress.timings["first_scenario_s"] = round(self._progress.elapsed(), 3)
        self._touched, self._parts = False, []
        self._context.evidence.begin(item.nodeid)
        self._watchdog.begin(item.nodeid, self.deadlines.of(item))
        try:
            done = yield
        finally:
            self._watchdog.end()
        recorder = self._context.recorder
        if (directory := self._context.scenario_directory(item.nodeid)).is_dir():
            for id in (item.nodeid, *(part.id for part in self._parts)):
                recorder.left(id, f"scenarios/{directory.name}")
        for part in self._parts:
            if part.outcome is Outcome.FAILED:
                self._progress.say(terminal.line(part))
        result = recorder.result(item.nodeid)
        self._progress.say(terminal.line(result, self._parts))
        self._judge_fitness(result)
        self._note(item, result)
        return done

    def _note(self, item: pytest.Item, result: ScenarioResult) -> None:
        """What became of a scenario, for what stands on it, and for the results of a killed run."""
        if self._record:
            self._record.ended([result, *self._parts])
        failed = result.outcome is Outcome.FAILED or any(
            part.outcome is Outcome.FAILED for part in self._parts
        )
        if failed:
            broke = self._context.state is State.BROKEN
            self._context.known_foundations.note(item, Became.BROKE if broke else Became.FAILED)
        elif result.outcome in (Outcome.PASSED, Outcome.KNOWNFAIL):
            self._context.known_foundations.note(item, Became.PASSED)

    def _late(self, id: str, seconds: float) -> None:
        """Called in another thread: a scenario did not end in time."""
        up = self._context.up
        if up is None:
            return
        environment = up.environment
        found = investigate(environment.machines.values(), environment.hosts.values())
        directory = self._context.scenario_directory(id)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "hang.log").write_text(found)
        lines = [f"it did not end in {seconds:.0f} s", *summary(found), "hang.log has all of it"]
        self._hung[id] = "\n".join(lines)
        # Everybody who waits for the machine is told that it died, the scenario as well.
        environment.condemn(lines[0])

    def _judge_fitness(self, result: ScenarioResult) -> None:
        """After a scenario: may the next one use the same machines?"""
        failed = self._context.state is State.UP and result.outcome is Outcome.FAILED
        if failed and (why := unfit(self._context.environment)):
            self._context.broken(result.id, why)
        if self._context.state is State.UP and self._touched:
            self._context.breakage.spared()
        if result.outcome is Outcome.PASSED:
            self.deadlines.took(result.id, result.seconds)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if reason := markers.lacking(item, self._context.environment.spec):
            pytest.skip(reason)
        if not self._run_all and (reason := self._context.known_foundations.broken(item)):
            pytest.skip(not_run_reason(reason))
        self._touched = True
        if not markers.is_early(item):
            # One that failed is told to those who ask for it.
            with contextlib.suppress(TestbedError):
                self._context.environment.wait_for_servers()
        if self._context.up:
            self._context.up.leftovers.begin(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.excinfo and report.failed:
            explain(report, item, call.excinfo)
        if self._touched:
            self._look(item, report)
        return report

    def _look(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Fail a scenario for what the kernel says or for the machine's death."""
        directory = self._context.scenario_directory(item.nodeid)
        evidence = self._context.evidence
        was_broken = self._context.state is State.BROKEN
        if report.when == "teardown":
            splats = evidence.border(f"end of {item.nodeid}", directory)
        elif report.when == "call" or report.failed:
            splats = evidence.glance()
        else:
            return
        untrusted = suspicious(splats)
        left = []
        if report.when == "teardown" and not was_broken:
            left = self._context.up.leftovers.judge() if self._context.up else []
        unknown, not_made = known_splats.expect(item, report, splats, self._context.notes)
        evidence.excuse([s for s in splats if s not in unknown], known_splats.reason_of(item))
        splats = unknown
        death = evidence.death()
        if report.when == "teardown":
            if death and not was_broken:
                splats += evidence.last_words(directory)
            if directory.is_dir():
                report.user_properties.append(("evidence", f"scenarios/{directory.name}"))
        if death and not was_broken and (hung := self._hung.get(item.nodeid)):
            fail(report, f"{hung}\n\n{evidence.describe(splats)}".rstrip())
        else:
            self._fail(report, splats, not_made, death, was_broken=was_broken)
        if report.when == "teardown" and evidence.crashes and not death:
            fail(report, "\n\n".join(evidence.crashes))
        if left and not death:
            fail(report, describe_leftovers(left))
            failed = self._context.recorder.result(item.nodeid).outcome is Outcome.FAILED
            untrusted = untrusted or (f"it left behind {left[0]}" if failed else None)
        if why := death or untrusted:
            self._context.broken(item.nodeid, why)

    def _fail(
        self,
        report: pytest.TestReport,
        splats: list[Splat],
        not_made: str,
        death: str | None,
        *,
        was_broken: bool,
    ) -> None:
        if death and not was_broken:
            fail(report, self._context.evidence.describe_death(death, splats))
        elif death and report.when == "teardown":
            # Its death is the failure already; that nothing can be torn down follows from it.
            report.outcome, report.longrepr = "passed", None
        elif splats or not_made:
            fail(report, self._context.evidence.describe(splats) or not_made)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        result = self._context.recorder.add(report)
        if result.suite and report.when == "call":
            self._parts.append(result)
