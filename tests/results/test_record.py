"""Runs that are killed have results as well."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.results.record import Record, announced, killed_runs, recorded
from smbdirect_testbed.results.results import Outcome, RunResults, ScenarioResult
from smbdirect_testbed.run.killed import publish_killed_runs

_KILLED = """
import os, signal, sys
from pathlib import Path
from smbdirect_testbed.results.record import Record, announced
from smbdirect_testbed.results.results import Outcome, RunResults, ScenarioResult
directory = Path(sys.argv[1])
with announced(directory):
    for part in sys.argv[2:] or ["."]:
        record = Record(directory / part)
        results = RunResults(directory, facts={"environment": "fake"}, command=["x"])
        record.begins(results, [f"test_it.py::{part}1", f"test_it.py::{part}2"])
        record.ended([ScenarioResult(f"test_it.py::{part}1", Outcome.FAILED, 2.0, "why")])
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMBDIRECT_TESTBED_STATE", str(tmp_path / "state"))


@pytest.mark.parametrize("parts", [[], ["part-1", "part-2"]], ids=["whole", "shares"])
def test_the_next_command_writes_the_results_of_a_killed_run(
    tmp_path: Path, parts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "results" / "run-1"
    argv = [sys.executable, "-c", _KILLED, str(directory), *parts]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL
    publish_killed_runs(Progress())
    found = json.loads((directory / "run.json").read_text())
    assert (found["verdict"], found["reason"]) == ("interrupted", "the run was killed")
    outcomes = {s["id"]: (s["outcome"], s["message"]) for s in found["scenarios"]}
    for part in parts or ["."]:
        assert outcomes[f"test_it.py::{part}1"] == ("failed", "why")
        assert outcomes[f"test_it.py::{part}2"] == ("not run", "the run was killed")
    assert (directory / "report.html").exists()
    assert (tmp_path / "results" / "latest").readlink() == Path("run-1")
    assert "results of a run that was killed" in capfd.readouterr().err
    assert list(killed_runs()) == []


def test_a_run_that_goes_on_is_not_taken_for_killed(tmp_path: Path) -> None:
    directory = tmp_path / "results" / "run-1"
    with announced(directory):
        Record(directory).begins(RunResults(directory), ["test_it.py::a"])
        program = "from smbdirect_testbed.results import record; print([*record.killed_runs()])"
        argv = [sys.executable, "-c", program]
        assert subprocess.run(argv, capture_output=True, check=True).stdout == b"[]\n"
    assert list(killed_runs()) == []


def test_a_line_that_was_being_written_is_left_out(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.begins(RunResults(tmp_path), ["test_it.py::a"])
    record.ended([ScenarioResult("test_it.py::a", Outcome.PASSED)])
    record.close()
    file = tmp_path / "record.jsonl"
    file.write_text(file.read_text() + '{"scenario": {"id": "test_it.py::a", "outco')
    found = recorded(tmp_path, "killed")
    assert found
    assert [s.outcome for s in found.scenarios] == [Outcome.PASSED]
    assert recorded(tmp_path / "nothing", "killed") is None
