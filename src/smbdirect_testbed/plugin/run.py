"""One run of scenarios: provision after collection, watch, replace what breaks, tear down."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import ExitStatus, TestbedError, UsageError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.plugin import markers
from smbdirect_testbed.plugin.collection import Collection
from smbdirect_testbed.plugin.deadline import Deadlines
from smbdirect_testbed.plugin.evidence import describe
from smbdirect_testbed.plugin.failures import text_of
from smbdirect_testbed.plugin.fixtures import Fixtures
from smbdirect_testbed.plugin.provided import ProvidedEnvironment
from smbdirect_testbed.plugin.publish import JUNIT, publish
from smbdirect_testbed.plugin.pytest_args import pytest_arguments
from smbdirect_testbed.plugin.recorder import not_run_reason
from smbdirect_testbed.plugin.run_context import RunContext, State
from smbdirect_testbed.plugin.scenario_judge import ScenarioJudge
from smbdirect_testbed.plugin.shard import Share
from smbdirect_testbed.plugin.usual_seconds import usual_seconds
from smbdirect_testbed.results import results, terminal
from smbdirect_testbed.results.record import Record
from smbdirect_testbed.results.results import Outcome, RunResults, Verdict

if TYPE_CHECKING:
    from smbdirect_testbed.environment.environment import Environment

_PROVIDE = "environment::provide"
_TEARDOWN = "environment::teardown"


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
        self._maxfail = maxfail
        self._interrupted = interrupted
        self._progress = progress
        self._keep = keep
        self._environments = 0
        self._config: pytest.Config | None = None
        self._verdict: tuple[Verdict, str] | None = None
        """What became of the run, if not all of its scenarios ran."""
        self._error: BaseException | None = None
        """What :meth:`main` is to raise: wrong usage, or an error of the testbed."""
        self._why_not_run = "the run stopped before"
        self._finished = False
        self._judge = ScenarioJudge(self._context, progress, run_all=run_all)

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
            pytest.main(arguments, plugins=[self, self._collection, self._judge, *plugins])
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
            record = Record(self.results.directory)
            record.begins(self.results, [item.nodeid for item in session.items])
            self._set_up()
            with self._judge.watching(record):
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
            if self._context.state is State.BROKEN:
                self._replace(session)
            if self._context.state is not State.UP or session.shouldfail or session.shouldstop:
                return
            if self._maxfail and self._context.known_foundations.failures() >= self._maxfail:
                why = f"the run ends after {self._maxfail} failures"
                self._end(Verdict.FAILED, why, why)
                return
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    def _end(self, verdict: Verdict, reason: str, why_not_run: str) -> None:
        """No further scenario runs; the first reason for that is the run's."""
        if self._context.state is not State.OVER:
            self._context.state, self._why_not_run = State.OVER, why_not_run
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
        self._context.state = State.UP
        if not again:
            self.results.facts = up.environment.facts()
            self._judge.deadlines = Deadlines(usual_seconds(up.environment.spec.carrier))
        if splats:
            self._report(id, "call", describe(splats))

    def _replace(self, session: pytest.Session) -> None:
        """Take a broken environment down and provide another, unless that was done too often."""
        # Fixtures that live longer than a scenario were set up in the old one; pytest sets them up
        # once more for the next scenario. That they cannot be torn down follows from the breakage.
        with contextlib.suppress(Exception):
            session._setupstate.teardown_exact(None)
        if self._keep:
            self._end(Verdict.FAILED, self._context.breakage.last, "the broken machine is kept")
            return
        self._tear_down()
        if why := self._context.breakage.too_often():
            self._end(Verdict.FAILED, why, why)
            return
        self._progress.say(f"starting a fresh machine: {self._context.breakage.last}")
        self._context.notes.append(f"a fresh machine was started: {self._context.breakage.last}")
        self._set_up()

    def _tear_down(self) -> None:
        """Take the environment down; harmless when repeated."""
        up, self._context.up = self._context.up, None
        if up is None:
            return
        broken = self._context.state is State.BROKEN
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
