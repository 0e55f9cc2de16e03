"""One run of scenarios: provision after collection, watch, replace what breaks, tear down."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from smbdirect_testbed.kernel.splats import Splat
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import ExitStatus, TestbedError, UsageError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.plugin import known_splats, markers
from smbdirect_testbed.plugin.breakage import Breakage, suspicious, unfit
from smbdirect_testbed.plugin.collection import Collection
from smbdirect_testbed.plugin.deadline import Deadlines, Watchdog
from smbdirect_testbed.plugin.evidence import describe
from smbdirect_testbed.plugin.failures import explain, fail, text_of
from smbdirect_testbed.plugin.fixtures import Fixtures
from smbdirect_testbed.plugin.foundations import Became, Foundations
from smbdirect_testbed.plugin.hang import investigate, summary
from smbdirect_testbed.plugin.leftovers import describe_leftovers
from smbdirect_testbed.plugin.provided import ProvidedEnvironment
from smbdirect_testbed.plugin.publish import JUNIT, publish
from smbdirect_testbed.plugin.pytest_args import pytest_arguments
from smbdirect_testbed.plugin.recorder import not_run_reason
from smbdirect_testbed.plugin.run_context import RunContext
from smbdirect_testbed.plugin.server_crashes import describe_crashes
from smbdirect_testbed.plugin.shard import Share
from smbdirect_testbed.plugin.usual_seconds import usual_seconds
from smbdirect_testbed.results import results, terminal
from smbdirect_testbed.results.record import Record
from smbdirect_testbed.results.results import Outcome, RunResults, ScenarioResult, Verdict

if TYPE_CHECKING:
    from smbdirect_testbed.environment.environment import Environment

_PROVIDE = "environment::provide"
_TEARDOWN = "environment::teardown"


class State(Enum):
    """How far a run is."""

    COLLECTING = auto()
    UP = auto()
    """Scenarios run in the environment that is up."""
    BROKEN = auto()
    """The environment is up, but no further scenario may use it."""
    OVER = auto()
    """No further scenario runs."""


class RunPlugin:
    """Runs scenarios in an environment and writes the results; good for one run.

    A scenario that breaks its machines costs itself alone: the next one gets fresh ones.

    :param provide: makes the environment when a ``with`` statement enters what it returns; called
        once more for each environment that replaces a broken one
    :param run_dir: where the results go; need not exist. Its name is the run's id.
    :param environment: the environment's name
    :param keep: whether the environment stays up, for the closing lines
    :param thorough: also run the scenarios that are marked so
    :param share: run a part of the scenarios, and leave publishing the results to the caller
    :param run_all: also run what stands on something that is red
    :param maxfail: end after so many failures, in all shares; 0 for all
    :param interrupted: called when the run is interrupted, with what writes the results at once
    :param raises: what is raised and leaves nothing when the environment cannot be provided, in
        place of a verdict
    """

    def __init__(
        self,
        provide: Callable[[], AbstractContextManager[Environment]],
        run_dir: Path,
        progress: Progress,
        *,
        environment: str = "",
        keep: bool = False,
        thorough: bool = True,
        share: Share | None = None,
        run_all: bool = False,
        maxfail: int = 0,
        interrupted: Callable[[Callable[[], object]], object] = lambda _: None,
        raises: tuple[type[TestbedError], ...] = (UsageError,),
    ) -> None:
        self.results = RunResults(run_dir, command=sys.argv, facts={"environment": environment})
        self._context = RunContext(self.results)
        self._collection = Collection(self._context, thorough=thorough, share=share)
        self._provide = provide
        self._raises = raises
        self._publishes = share is None
        self._run_all = run_all
        self._maxfail = maxfail
        self._interrupted = interrupted
        self._record: Record | None = None
        self._progress = progress
        self._keep = keep
        self._state = State.COLLECTING
        self._breakage = Breakage()
        self._environments = 0
        self._config: pytest.Config | None = None
        self._verdict: tuple[Verdict, str] | None = None
        """What became of the run, if not all of its scenarios ran."""
        self._error: BaseException | None = None
        """What :meth:`main` is to raise: wrong usage, or an error of the testbed."""
        self._why_not_run = "the run stopped before"
        self._touched = False
        self._deadlines = Deadlines({})
        self._watchdog = Watchdog(self._late)
        self._finished = False
        self._hung: dict[str, str] = {}
        self._parts: list[ScenarioResult] = []

    def main(
        self,
        scenarios: Sequence[str] = (),
        expression: str | None = None,
        plugins: Sequence[object] = (),
    ) -> ExitStatus:
        """Run scenarios and write the results; return the exit status.

        :param scenarios: pytest's paths and node ids; empty for all of the project's
        :param expression: pytest's ``-k``
        :param plugins: more pytest plugins
        :raises UsageError: a path or expression is wrong, or matches nothing; nothing is left then
        :raises TestbedError: the environment cannot be provided, and the caller wants to know that
        """
        chosen = list(scenarios) or [str(paths.scenarios())]
        for path in (Path(s.partition("::")[0]) for s in chosen):
            if not path.exists():
                raise UsageError(f"there is no scenario {path}")
        # The terminal is ours; pytest's reporter must exist, but nobody needs to see it.
        with (
            contextlib.suppress(KeyboardInterrupt),
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),
        ):
            arguments = pytest_arguments(chosen, expression, self.results.directory / JUNIT)
            pytest.main(arguments, plugins=[self, self._collection, *plugins])
        error = self._collection.error() or self._error
        if isinstance(error, self._raises):
            self._leave_nothing()
            raise error
        self._finish()
        if error:
            raise error
        return self.exit_status

    @property
    def exit_status(self) -> ExitStatus:
        """The exit status of the command line, after the run."""
        return self.results.verdict.exit_status

    def _leave_nothing(self) -> None:
        shutil.rmtree(self.results.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.results.directory.parent.rmdir()

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config
        for line in markers.lines():
            config.addinivalue_line("markers", line)
        config.pluginmanager.register(Fixtures(self._context))

    # Running. An environment is up from the first item to the last; after Ctrl-C it stays up
    # until the fixtures that use it are torn down, which pytest does at the end of the session.

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if self._collection.error() or session.config.option.collectonly:
            return True
        try:
            self._record = Record(self.results.directory)
            self._record.begins(self.results, [item.nodeid for item in session.items])
            self._set_up()
            with self._watchdog:
                self._run_items(session)
            self._tear_down()
        except KeyboardInterrupt:
            self._interrupted(self._finish)
            # There is no time to end machines in good order.
            if self._context.up and not self._keep:
                self._context.environment.condemn("interrupted")
            self._end(Verdict.INTERRUPTED, "interrupted", "interrupted")
        except Exception as e:
            self._error = e
            self._end(Verdict.FAILED, f"error of the testbed: {e}", "the run stopped before")
        for item in session.items:
            result = self._context.recorder.result(item.nodeid)
            if result.outcome is Outcome.NOT_RUN and not result.message:
                self._report_not_run(item, self._why_not_run)
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            self._tear_down()

    def _run_items(self, session: pytest.Session) -> None:
        for item, following in zip(session.items, [*session.items[1:], None], strict=True):
            if self._state is State.BROKEN:
                self._replace(session)
            if self._state is not State.UP or session.shouldfail or session.shouldstop:
                return
            if self._maxfail and self._foundations.failures() >= self._maxfail:
                why = f"the run ends after {self._maxfail} failures"
                self._end(Verdict.FAILED, why, why)
                return
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    @property
    def _foundations(self) -> Foundations:
        assert self._context.foundations
        return self._context.foundations

    def _end(self, verdict: Verdict, reason: str, why_not_run: str) -> None:
        """No further scenario runs; the first reason for that is the run's."""
        if self._state is not State.OVER:
            self._state, self._why_not_run = State.OVER, why_not_run
            self._verdict = (verdict, reason)

    def _set_up(self) -> None:
        """Provide an environment, the first one or another."""
        self._environments += 1
        again = "" if self._environments == 1 else f"-{self._environments}"
        id = f"{_PROVIDE}{again}"
        up = ProvidedEnvironment(
            self._provide,
            self.results.directory,
            self._progress,
            self._context.notes,
            self.results.kernel_reports,
            self._environments,
        )
        try:
            splats = up.open(self._context.scenario_directory(id))
        except TestbedError as e:
            if isinstance(e, UsageError if again else self._raises):
                self._error = e
            else:
                self._report(id, "setup", text_of(e))
            if again:
                self._end(Verdict.FAILED, e.message, f"there is no fresh machine: {e.message}")
            else:
                why = "the environment could not be provided"
                self._end(Verdict.NOT_PROVIDED, e.message, why)
            return
        self._context.up = up
        self._state = State.UP
        if not again:
            self.results.facts = up.environment.facts()
            self._deadlines = Deadlines(usual_seconds(up.environment.spec.carrier))
        if splats:
            self._report(id, "call", describe(splats))

    def _replace(self, session: pytest.Session) -> None:
        """Take a broken environment down and provide another, unless that was done too often."""
        # Fixtures that live longer than a scenario were set up in the old one; pytest sets them up
        # once more for the next scenario. That they cannot be torn down follows from the breakage.
        with contextlib.suppress(Exception):
            session._setupstate.teardown_exact(None)
        if self._keep:
            self._end(Verdict.FAILED, self._breakage.last, "the broken machine is kept")
            return
        self._tear_down()
        if why := self._breakage.too_often():
            self._end(Verdict.FAILED, why, why)
            return
        self._progress.say(f"starting a fresh machine: {self._breakage.last}")
        self._context.notes.append(f"a fresh machine was started: {self._breakage.last}")
        self._set_up()

    def _tear_down(self) -> None:
        """Take the environment down; harmless when repeated."""
        up, self._context.up = self._context.up, None
        if up is None:
            return
        broken = self._state is State.BROKEN
        try:
            if (late := up.close()) and not broken:
                self._report(_TEARDOWN, "call", describe(late))
        except (TestbedError, OSError) as e:
            if not broken:
                self._report(_TEARDOWN, "call", text_of(e))

    def _report(self, id: str, when: Literal["setup", "call"], message: str) -> None:
        """Report something that is no scenario as failed: pytest, and all its reporters, see it."""
        assert self._config
        self._config.hook.pytest_runtest_logreport(
            report=pytest.TestReport(id, (id, None, id), {}, "failed", message, when)
        )
        self._progress.say(terminal.line(self._context.recorder.result(id)))

    def _report_not_run(self, item: pytest.Item, reason: str) -> None:
        said = (item.location[0], item.location[1] or 0, not_run_reason(reason))
        for when in ("call", "teardown"):
            item.ihook.pytest_runtest_logreport(
                report=pytest.TestReport(item.nodeid, item.location, {}, "skipped", said, when)
            )

    # One scenario.

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        if "first_scenario_s" not in self._progress.timings:
            self._progress.timings["first_scenario_s"] = round(self._progress.elapsed(), 3)
        self._touched, self._parts = False, []
        self._context.evidence.begin(item.nodeid)
        self._watchdog.begin(item.nodeid, self._deadlines.of(item))
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
            broke = self._state is State.BROKEN
            self._foundations.note(item, Became.BROKE if broke else Became.FAILED)
        elif result.outcome in (Outcome.PASSED, Outcome.KNOWNFAIL):
            self._foundations.note(item, Became.PASSED)

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
        failed = self._state is State.UP and result.outcome is Outcome.FAILED
        if failed and (why := unfit(self._context.environment)):
            self._break(result.id, why)
        if self._state is State.UP and self._touched:
            self._breakage.spared()
        if result.outcome is Outcome.PASSED:
            self._deadlines.took(result.id, result.seconds)

    def _break(self, id: str, what: str) -> None:
        if self._state is State.UP:
            self._state = State.BROKEN
            self._breakage.broke(id, what)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if reason := markers.lacking(item, self._context.environment.spec):
            pytest.skip(reason)
        if not self._run_all and (reason := self._foundations.broken(item)):
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
        was_broken = self._state is State.BROKEN
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
            fail(report, describe_crashes(evidence.crashes))
        if left and not death:
            fail(report, describe_leftovers(left))
            failed = self._context.recorder.result(item.nodeid).outcome is Outcome.FAILED
            untrusted = untrusted or (f"it left behind {left[0]}" if failed else None)
        if why := death or untrusted:
            self._break(item.nodeid, why)

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

    # The end.

    def _finish(self) -> None:
        found = self.results
        if self._finished:
            return
        self._finished = True
        found.scenarios = self._context.recorder.results()
        found.seconds = self._progress.elapsed()
        found.started = time.time() - found.seconds
        found.timings = dict(self._progress.timings)
        found.verdict, found.reason = self._verdict or results.judge(found.scenarios)
        if self._publishes:
            publish(found, keep=self._keep)
