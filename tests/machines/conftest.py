"""Running the testbed as a user does, with state and results of its own; the cache is shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest


@dataclass(frozen=True)
class Testbed:
    """A user's command line.

    :param directory: where the user stands; results and state lie below it
    """

    __test__ = False
    directory: Path

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def environment(self) -> dict[str, str]:
        own = {"STATE": self.state, "RESULTS": self.directory / "results"}
        return {**os.environ, **{f"SMBDIRECT_TESTBED_{k}": str(path) for k, path in own.items()}}

    def start(self, *arguments: str, program: Sequence[str] = ()) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *(program or ("-m", "smbdirect_testbed")), *arguments],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self, *arguments: str, program: Sequence[str] = (), input: str | None = None
    ) -> Outcome:
        proc = self.start(*arguments, program=program)
        try:
            output, _ = proc.communicate(input, timeout=900)
        except BaseException:
            proc.terminate()
            proc.wait()
            raise
        print(output)
        return Outcome(proc.returncode, output, self.directory / "results" / "latest")

    def leftovers(self) -> list[str]:
        """Processes that know of our state directory, and what lies in it."""
        found = [
            " ".join(p.info["cmdline"])
            for p in psutil.process_iter(["cmdline"])
            if any(str(self.directory) in word for word in p.info["cmdline"] or ())
        ]
        return found + [str(p) for p in self.state.glob("*")]


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    :param results: where the results of a run are
    """

    status: int
    output: str
    results: Path

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.results / "run.json").read_text())
        return record

    def cases(self) -> dict[str, str]:
        """Verdicts in ``junit.xml`` by ``file::name``: passed, failure, error, skipped."""
        cases = {}
        for case in ElementTree.parse(self.results / "junit.xml").iter("testcase"):
            bad = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
            name = f"{case.get('classname')}::{case.get('name')}"
            cases[name] = bad[0] if bad else "passed"
        return cases

    def failed(self) -> set[str]:
        """Names of the cases that failed."""
        return {name for name, verdict in self.cases().items() if verdict in ("failure", "error")}


@pytest.fixture
def testbed(tmp_path: Path) -> Iterator[Testbed]:
    testbed = Testbed(tmp_path)
    yield testbed
    if testbed.state.exists():
        for directory in testbed.state.iterdir():
            testbed.run("down", "--instance", directory.name)
        testbed.run("clean", "--yes")
    assert testbed.leftovers() == []


@pytest.fixture(scope="module")
def module_testbed(tmp_path_factory: pytest.TempPathFactory) -> Testbed:
    return Testbed(tmp_path_factory.mktemp("testbed"))


Sabotaged = Callable[..., Outcome]


@pytest.fixture
def sabotaged(testbed: Testbed) -> Sabotaged:
    """Run scenarios after breaking one thing; see ``sabotage.py``."""
    program = [str(Path(__file__).with_name("sabotage.py"))]

    def run(what: str, expression: str, environment: str = "rxe") -> Outcome:
        return testbed.run(what, expression, environment, program=program)

    return run
