"""One run of scenarios: provision after collection, watch, tear down, keep complete results."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import ExitStatus, TestbedError, UsageError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.machine.kernel_log import find_splats
from smbdirect_testbed.plugin import known_splats, markers
from smbdirect_testbed.plugin.evidence import Evidence, describe, describe_death, log_name
from smbdirect_testbed.plugin.failures import explain, fail, text_of
from smbdirect_testbed.plugin.fixtures import Fixtures
from smbdirect_testbed.plugin.publish import JUNIT, publish
from smbdirect_testbed.plugin.pytest_args import pytest_arguments
from smbdirect_testbed.plugin.recorder import Recorder, not_run_reason
from smbdirect_testbed.plugin.shard import Share
from smbdirect_testbed.plugin.smbtorture import expectations_of
from smbdirect_testbed.results import results, terminal
from smbdirect_testbed.results.knownfail import Expectations
from smbdirect_testbed.results.results import Outcome, RunResults, ScenarioResult, Verdict

_PROVIDE = "environment::provide"
_TEARDOWN = "environment::teardown"

if TYPE_CHECKING:
    from smbdirect_testbed.environment.environment import Environment


class RunPlugin:
    """Runs scenarios in an environment and writes the results; good for one run.

    :param provide: makes the environment when a ``with`` statement enters what it returns
    :param run_dir: where the results go; need not exist. Its name is the run's id.
    :param environment: the environment's name
    :param keep: whether the environment stays up, for the closing lines
    :param thorough: also run the scenarios that are marked so
    :param share: run a part of the scenarios, and leave publishing the results to the caller
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
    ) -> None:
        self._provide = provide
        self._thorough = thorough
        self._share = share
        self._progress = progress
        self._keep = keep
        self._stack = ExitStack()
        self._environment: Environment | None = None
        self._evidence: Evidence | None = None
        self._config: pytest.Config | None = None
        self._recorder = Recorder()
        self._collection_errors: list[str] = []
        self._not_provided: TestbedError | None = None
        self._death: str | None = None
        self._interrupted = False
        self._bug: BaseException | None = None
        self._running: str | None = None
        self._touched = False
        self._parts: list[ScenarioResult] = []
        self.results = RunResults(run_dir, command=sys.argv, facts={"environment": environment})

    # What fixtures use.

    @property
    def environment(self) -> Environment:
        """The environment, while scenarios run."""
        assert self._environment
        return self._environment

    @property
    def evidence(self) -> Evidence:
        """The evidence of what happens while scenarios run."""
        assert self._evidence
        return self._evidence

    @property
    def notes(self) -> list[str]:
        """Lines for the results about what is worth knowing and fails nothing."""
        return self.results.notes

    def scenario_directory(self, id: str) -> Path:
        """The directory for what a scenario leaves; need not exist yet."""
        return self.results.directory / "scenarios" / self._recorder.directory(id)

    # The run.

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
            pytest.main(arguments, plugins=[self, *plugins])
        if self._collection_errors:
            self._leave_nothing()
            raise UsageError(
                self._collection_errors[0].splitlines()[0],
                detail="\n".join("\n".join(self._collection_errors).splitlines()[1:]),
            )
        if isinstance(self._not_provided, UsageError):
            self._leave_nothing()
            raise self._not_provided
        self._finish()
        if self._bug:
            raise self._bug
        return self.exit_status

    @property
    def exit_status(self) -> ExitStatus:
        """The exit status of the command line, after the run."""
        return self.results.verdict.exit_status

    def _leave_nothing(self) -> None:
        shutil.rmtree(self.results.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.results.directory.parent.rmdir()

    # Collection.

    def pytest_configure(self, config: pytest.Config) -> None:
        for marker in markers.MARKERS:
            config.addinivalue_line("markers", marker)
        config.pluginmanager.register(Fixtures(self))

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self, session: pytest.Session) -> Generator[None, object, object]:
        try:
            done = yield
        except pytest.UsageError as e:
            self._collection_errors.append(str(e))
            session.items = []
            return None
        if not session.items and not self._collection_errors:
            self._collection_errors.append(
                f"no scenario matches {session.config.getoption('keyword') or 'the paths given'}"
            )
        return done

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            where = report.nodeid or "the scenarios"
            self._collection_errors.append(
                f"{where} cannot be read as scenarios\n{report.longreprtext}"
            )

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        markers.check_markers(items)
        if not self._thorough and (left_out := [i for i in items if markers.is_thorough(i)]):
            items[:] = [i for i in items if i not in left_out]
            self.notes.append(
                f"{len(left_out)} thorough scenarios were left out; run --thorough runs them, too"
            )
        if self._share:
            items[:] = self._share.pick(items)
        for path in {
            expectations_of(i) for i in items if "torture" in getattr(i, "fixturenames", ())
        }:
            try:
                Expectations.load(path)
            except UsageError as e:
                raise pytest.UsageError(e.message) from e

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._recorder.expect(item.nodeid for item in session.items)

    # Running. The environment is up from the first item to the last; after Ctrl-C it stays up
    # until the fixtures that use it are torn down, which pytest does at the end of the session.

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if self._collection_errors or session.config.option.collectonly:
            return True
        self._config = session.config
        try:
            if self._set_up():
                self._run_items(session)
                self._tear_down()
        except KeyboardInterrupt:
            self._interrupted = True
        except Exception as e:
            self._bug = e
        for item in session.items:
            result = self._recorder.result(item.nodeid)
            if result.outcome is Outcome.NOT_RUN and not result.message:
                self._report_not_run(item, self._why_not_run())
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            self._tear_down()

    def _run_items(self, session: pytest.Session) -> None:
        for item, following in zip(session.items, [*session.items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail or session.shouldstop:
                return

    def _set_up(self) -> bool:
        """Provide the environment; False when that failed."""
        self.results.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._environment = self._stack.enter_context(self._provide())
            self.results.facts = _facts(self._environment)
            with self._progress.phase("watch", "watching kernel log and wire"):
                self._evidence = self._stack.enter_context(
                    Evidence(self._environment, self.results.directory, self.notes)
                )
                splats = self._evidence.border("provided", self.scenario_directory(_PROVIDE))
        except TestbedError as e:
            self._not_provided = e
            self._report(_PROVIDE, "setup", text_of(e))
            self._close()
            return False
        if splats:
            self._report(_PROVIDE, "call", describe(splats))
        return True

    def _tear_down(self) -> None:
        """Take the environment down; harmless when repeated."""
        if self._environment is None:
            return
        machines = self._environment.machines
        marks = self._evidence.last_marks if self._evidence else {}
        self._environment = None
        try:
            # The directory with the consoles goes with the environment, but not what is open.
            with ExitStack() as consoles:
                logs = {
                    name: consoles.enter_context(machine.console.open("rb"))
                    for name, machine in machines.items()
                }
                try:
                    self._close()
                finally:
                    late = []
                    for name, log in logs.items():
                        text = log.read()
                        (self.results.directory / log_name(name, logs)).write_bytes(text)
                        after = text[marks[name].end if name in marks else 0 :]
                        late += find_splats(after.decode(errors="replace"))
            if late := [s for s in late if s.fails]:
                self._report(_TEARDOWN, "call", describe(late))
        except (TestbedError, OSError) as e:
            self._report(_TEARDOWN, "call", text_of(e))

    def _close(self) -> None:
        stack, self._stack = self._stack, ExitStack()
        stack.close()

    def _report(self, id: str, when: Literal["setup", "call"], message: str) -> None:
        """Report something that is no scenario as failed: pytest, and all its reporters, see it."""
        assert self._config
        self._config.hook.pytest_runtest_logreport(
            report=pytest.TestReport(id, (id, None, id), {}, "failed", message, when)
        )
        self._progress.say(terminal.line(self._recorder.result(id)))

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
        self._running, self._touched, self._parts = item.nodeid, False, []
        self.evidence.begin()
        done = yield
        if (directory := self.scenario_directory(item.nodeid)).is_dir():
            for id in (item.nodeid, *(part.id for part in self._parts)):
                self._recorder.left(id, f"scenarios/{directory.name}")
        for part in self._parts:
            if part.outcome is Outcome.FAILED:
                self._progress.say(terminal.line(part))
        self._progress.say(terminal.line(self._recorder.result(item.nodeid), self._parts))
        self._running = None
        return done

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self._death:
            pytest.skip(not_run_reason(self._death))
        if reason := markers.lacking(item, self.environment.spec):
            pytest.skip(reason)
        self._touched = True
        if not markers.is_early(item):
            # One that failed is told to those who ask for it.
            with contextlib.suppress(TestbedError):
                self.environment.wait_for_servers()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.excinfo and report.failed:
            explain(report, item, call.excinfo)
        if self._touched:
            self._look(item, report)
        elif self._death and report.failed:
            # What is torn down here began before the machine died, and cannot be.
            report.outcome, report.longrepr = "passed", None
        return report

    def _look(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Fail a scenario for what the kernel says or for the machine's death."""
        directory = self.scenario_directory(item.nodeid)
        if report.when == "teardown":
            splats = self.evidence.border(f"end of {item.nodeid}", directory)
        elif report.when == "call" or report.failed:
            splats = self.evidence.glance()
        else:
            return
        splats, not_made = known_splats.expect(item, report, splats)
        death = self.evidence.death()
        if report.when == "teardown":
            if death and not self._death:
                splats += self.evidence.last_words(directory)
            if directory.is_dir():
                report.user_properties.append(("evidence", f"scenarios/{directory.name}"))
        if death and not self._death:
            fail(report, describe_death(death, splats))
            self._death = f"the machine died in {item.nodeid}: {death}"
        elif death and report.when == "teardown":
            # Its death is the failure already; that nothing can be torn down follows from it.
            report.outcome, report.longrepr = "passed", None
        elif splats or not_made:
            fail(report, describe(splats) or not_made)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        result = self._recorder.add(report)
        if result.suite and report.when == "call":
            self._parts.append(result)

    # The end.

    def _finish(self) -> None:
        found = self.results
        found.scenarios = self._recorder.results()
        found.seconds = self._progress.elapsed()
        found.started = time.time() - found.seconds
        found.timings = dict(self._progress.timings)
        if self._interrupted:
            found.verdict, found.reason = Verdict.INTERRUPTED, "interrupted"
        elif self._not_provided:
            found.verdict, found.reason = Verdict.NOT_PROVIDED, self._not_provided.message
        elif self._bug:
            found.verdict, found.reason = Verdict.FAILED, f"error of the testbed: {self._bug}"
        else:
            found.verdict, found.reason = results.judge(found.scenarios)
        if not self._share:
            publish(found, keep=self._keep)

    def _why_not_run(self) -> str:
        if self._not_provided:
            return "the environment could not be provided"
        if self._interrupted:
            return "interrupted"
        return self._death or "the run stopped before"


def _facts(environment: Environment) -> dict[str, str]:
    packages = sorted(f"{name} {version}\n" for name, version in environment.image.packages.items())
    digest = hashlib.sha256("".join(packages).encode()).hexdigest()
    return {**environment.facts(), "packages_digest": digest}
