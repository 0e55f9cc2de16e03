"""The results of a run, and the files they are written to.

A run's directory holds ``junit.xml``, ``run.json``, ``report.html``, the machine's ``kernel.log``,
the servers' logs, and below ``scenarios/`` one directory for each scenario that left something.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from smbdirect_testbed.lib.errors import ExitStatus
from smbdirect_testbed.lib.printable import printable
from smbdirect_testbed.results.kernel_reports import KernelReports

_SCHEMA = 1
_LONGEST_MESSAGE = 20_000
_LONGEST_NAME = 100


class Outcome(StrEnum):
    """How a scenario, or a test within one, ended.

    ::

        outcome = Outcome.PASSED if done.ok else Outcome.FAILED
        report_subtest(request.node, "mine", "mine[tcp]", Subtest("mine", outcome, seconds=0.1))
    """

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    KNOWNFAIL = "knownfail"
    NOT_RUN = "not run"


class Verdict(StrEnum):
    """How a run ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_PROVIDED = "not provided"
    INTERRUPTED = "interrupted"

    @property
    def exit_status(self) -> ExitStatus:
        """The exit status of the command line."""
        return {
            Verdict.PASSED: ExitStatus.PASSED,
            Verdict.FAILED: ExitStatus.FAILED,
            Verdict.NOT_PROVIDED: ExitStatus.NOT_PROVIDED,
            Verdict.INTERRUPTED: ExitStatus.INTERRUPTED,
        }[self]


@dataclass(frozen=True)
class ScenarioResult:
    """How one scenario, or one test of smbtorture within a scenario, ended.

    :param id: pytest's name of it, beginning with the file
    :param seconds: its duration
    :param message: why it failed, was skipped or was expected to fail; summary first
    :param trace: where in the scenario that was
    :param output: its output, if it failed
    :param suite: the name under which it counts as one of many: ``smb2.lock[smbdirect]``
    :param directory: its files, below the run's directory; empty if there are none
    """

    id: str
    outcome: Outcome
    seconds: float = 0.0
    message: str = ""
    trace: str = ""
    output: str = ""
    suite: str = ""
    directory: str = ""

    def __post_init__(self) -> None:
        for name in ("message", "trace", "output"):
            object.__setattr__(self, name, printable(shortened(getattr(self, name))))

    @property
    def file(self) -> str:
        """The file it is in."""
        return self.id.partition("::")[0]

    @property
    def summary(self) -> str:
        """The first line of the message."""
        return self.message.strip().partition("\n")[0]


@dataclass
class RunResults:
    """The results of a run.

    :param directory: of the results
    :param facts: the environment's facts
    :param packages_digest: identifies the image's list of packages with their versions
    :param notes: remarks that do not make the run fail
    :param kernel_reports: what the kernel said about itself
    :param reason: for the verdict, one line
    """

    directory: Path
    command: Sequence[str] = ()
    started: float = field(default_factory=time.time)
    seconds: float = 0.0
    facts: Mapping[str, str] = field(default_factory=dict)
    scenarios: list[ScenarioResult] = field(default_factory=list)
    timings: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kernel_reports: KernelReports = field(default_factory=KernelReports)
    verdict: Verdict = Verdict.FAILED
    reason: str = ""

    @property
    def run_id(self) -> str:
        """The name of the directory."""
        return self.directory.name

    def counts(self) -> dict[str, int]:
        """How many scenarios ended how."""
        found = Counter(s.outcome for s in self.scenarios)
        return {outcome.value: found[outcome] for outcome in Outcome}

    def failures(self) -> list[ScenarioResult]:
        """The scenarios that failed."""
        return [s for s in self.scenarios if s.outcome is Outcome.FAILED]


def judge(scenarios: Sequence[ScenarioResult]) -> tuple[Verdict, str]:
    """The verdict on a complete run, and its reason.

    A run in which nothing passed proves nothing, so it is not passed.
    """
    found = Counter(s.outcome for s in scenarios)
    if failed := found[Outcome.FAILED]:
        return Verdict.FAILED, f"{failed} of {len(scenarios)} failed"
    if found[Outcome.NOT_RUN]:
        return Verdict.FAILED, f"{found[Outcome.NOT_RUN]} of {len(scenarios)} did not run"
    if not found[Outcome.PASSED]:
        return Verdict.FAILED, "every scenario was skipped, so nothing was tested"
    return Verdict.PASSED, f"{found[Outcome.PASSED]} of {len(scenarios)} passed, none failed"


def new_run_id(environment: str) -> str:
    """A name for a run, unique, in order of time: ``20261122-081530-rxe-3f9a``."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{environment}-{secrets.token_hex(2)}"


class Directories:
    """Gives every scenario of a run a directory name of its own."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def name(self, id: str) -> str:
        """The name for a scenario's directory: readable, and safe on every file system."""
        if id not in self._names:
            stem, _, rest = id.partition("::")
            plain = f"{Path(stem).stem}.{rest}" if rest else Path(stem).stem
            base = re.sub(r"[^A-Za-z0-9._=+-]+", "_", plain).strip("._")[:_LONGEST_NAME] or "_"
            name, taken = base, set(self._names.values())
            number = 2
            while name in taken:
                name, number = f"{base}-{number}", number + 1
            self._names[id] = name
        return self._names[id]


def shortened(text: str, longest: int = _LONGEST_MESSAGE) -> str:
    """A text whose middle is left out when it is too long."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def write_run_json(results: RunResults) -> None:
    """Write ``run.json``.

    An object with these members; further ones may come, and then ``schema`` stays the same:

    - ``schema``: 1
    - ``run_id``; ``command``: the command line, a list; ``started``: time, ISO 8601 in UTC;
      ``seconds``: from then to the end
    - ``verdict``: ``passed``, ``failed``, ``not provided`` or ``interrupted``; ``reason``: one
      line; ``exit_status``: a number
    - ``environment``: what ran on what, all strings, among them ``environment`` (its name),
      ``carrier``, ``accelerator``, ``kernel``, ``samba``, ``driver_source``, ``driver_version``,
      ``image_digest``, ``packages_digest``; and ``testbed``, the testbed's own version. If the
      environment could not be provided, there are only ``environment`` and ``testbed``.
    - ``timings``: seconds by phase; ``first_scenario_s`` is the time from the command to the
      start of the first scenario
    - ``counts``: numbers by outcome: ``passed``, ``failed``, ``skipped``, ``knownfail``,
      ``not run``
    - ``notes``: a list of lines: remarks that do not make the run fail
    - ``kernel_reports``: what the kernel said about itself, each mistake once: a list of objects
      with ``fingerprint``, the same in every run for the same mistake; ``kind``; ``title``: what
      it said, a line; ``weight``: ``failure``, ``known`` or ``note``; ``count``; ``scenarios``:
      those in which it was said; ``reason``: why it is known
    - ``scenarios``: a list of objects with ``id``, ``outcome``, ``seconds``, ``message``,
      ``suite`` (of a test of smbtorture, else empty), ``directory`` (below the run's directory;
      empty for none)
    """
    document = {
        "schema": _SCHEMA,
        "run_id": results.run_id,
        "command": list(results.command),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(results.started)),
        "seconds": round(results.seconds, 3),
        "verdict": results.verdict.value,
        "reason": results.reason,
        "exit_status": int(results.verdict.exit_status),
        "environment": dict(results.facts),
        "timings": dict(results.timings),
        "counts": results.counts(),
        "notes": results.notes,
        "kernel_reports": results.kernel_reports.as_json(),
        "scenarios": [
            {
                "id": s.id,
                "outcome": s.outcome.value,
                "seconds": round(s.seconds, 3),
                "message": s.message,
                "suite": s.suite,
                "directory": s.directory,
            }
            for s in results.scenarios
        ],
    }
    (results.directory / "run.json").write_text(json.dumps(document, indent=1) + "\n")


def point_latest(directory: Path) -> None:
    """Make ``latest``, next to a run's directory, a symbolic link to it, in one step."""
    new = directory.parent / f".latest-{secrets.token_hex(4)}"
    new.symlink_to(directory.name)
    try:
        new.replace(directory.parent / "latest")
    except OSError:
        new.unlink()
        raise
