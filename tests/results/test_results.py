"""Results and their files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from smbdirect_testbed.lib.errors import ExitStatus
from smbdirect_testbed.results import results
from smbdirect_testbed.results.results import (
    Directories,
    Outcome,
    RunResults,
    ScenarioResult,
    Verdict,
)


def scenarios(*outcomes: Outcome) -> list[ScenarioResult]:
    return [ScenarioResult(f"test_it.py::test_{i}", o) for i, o in enumerate(outcomes)]


@pytest.mark.parametrize(
    ("outcomes", "verdict", "reason"),
    [
        ([Outcome.PASSED, Outcome.SKIPPED], Verdict.PASSED, "1 of 2 passed, none failed"),
        ([Outcome.PASSED, Outcome.KNOWNFAIL], Verdict.PASSED, "1 of 2 passed, none failed"),
        ([Outcome.PASSED, Outcome.FAILED], Verdict.FAILED, "1 of 2 failed"),
        ([Outcome.PASSED, Outcome.NOT_RUN], Verdict.FAILED, "1 of 2 did not run"),
        ([Outcome.SKIPPED], Verdict.FAILED, "every scenario was skipped, so nothing was tested"),
    ],
)
def test_verdict(outcomes: list[Outcome], verdict: Verdict, reason: str) -> None:
    assert results.judge(scenarios(*outcomes)) == (verdict, reason)


def test_exit_statuses() -> None:
    assert [v.exit_status for v in Verdict] == [
        ExitStatus.PASSED,
        ExitStatus.FAILED,
        ExitStatus.NOT_PROVIDED,
        ExitStatus.INTERRUPTED,
    ]


def test_run_id() -> None:
    assert re.fullmatch(r"20\d{6}-\d{6}-rxe-[0-9a-f]{4}", results.new_run_id("rxe"))


def test_directory_names() -> None:
    directories = Directories()
    name = directories.name
    assert (
        name("scenarios/test_socket.py::test_echo[64K-epoll]") == "test_socket.test_echo_64K-epoll"
    )
    assert name("environment::provide") == "environment.provide"
    assert name("a.py::t[x/y]") == "a.t_x_y"
    assert name("a.py::t[x y]") == "a.t_x_y-2"
    assert name("a.py::t[x/y]") == "a.t_x_y"
    assert name("../../etc/passwd") == "passwd"
    assert name("a.py::../../x") == "a..._.._x"
    assert len(name(f"a.py::{'x' * 500}")) == 100
    assert name("::") == "_"


def test_run_json(tmp_path: Path) -> None:
    found = RunResults(
        tmp_path,
        ["smbdirect-testbed", "run", "rxe"],
        started=0.0,
        seconds=61.23456,
        facts={"environment": "rxe", "kernel": "7.3.4"},
        scenarios=[
            ScenarioResult(
                "test_it.py::test_one", Outcome.FAILED, 1.5, "why\nmore", directory="scenarios/x"
            )
        ],
        timings={"first_scenario_s": 40.1},
    )
    results.write_run_json(found)
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["schema"] == 1
    assert document["run_id"] == tmp_path.name
    assert document["started"] == "1970-01-01T00:00:00Z"
    assert document["exit_status"] == 1
    assert document["environment"]["kernel"] == "7.3.4"
    assert document["timings"] == {"first_scenario_s": 40.1}
    assert document["counts"] == {
        "passed": 0,
        "failed": 1,
        "skipped": 0,
        "knownfail": 0,
        "not run": 0,
    }
    assert document["scenarios"] == [
        {
            "id": "test_it.py::test_one",
            "outcome": "failed",
            "seconds": 1.5,
            "message": "why\nmore",
            "suite": "",
            "directory": "scenarios/x",
        }
    ]


def test_messages_are_bounded() -> None:
    result = ScenarioResult("x", Outcome.FAILED, message="a" * 100_000 + "end")
    assert len(result.message) < 21_000
    assert "characters left out" in result.message
    assert result.message.endswith("end")


def test_latest(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        results.point_latest(tmp_path / name)
        assert (tmp_path / "latest").readlink() == Path(name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "one", "two"]


def test_latest_does_not_replace_a_directory(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / "one").mkdir()
    with pytest.raises(OSError, match="latest"):
        results.point_latest(tmp_path / "one")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "one"]
