"""Shares of the scenarios, and a run in parts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import operator
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError, UsageError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.plugin.shard import Share
from smbdirect_testbed.plugin.usual_seconds import remember_seconds
from smbdirect_testbed.results.results import Outcome, RunResults, ScenarioResult, Verdict
from smbdirect_testbed.run import shards
from smbdirect_testbed.run.shards import run_in_parts


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMBDIRECT_TESTBED_CACHE", str(tmp_path / "cache"))


def _item(file: str, name: str) -> Any:
    return SimpleNamespace(nodeid=f"{file}::{name}", path=Path(file), fixturenames=())


def _names(items: list[Any]) -> list[str]:
    return [item.nodeid for item in items]


ITEMS = [_item("a.py", f"a{n}") for n in range(3)] + [_item("b.py", f"b{n}") for n in range(9)]


@pytest.mark.parametrize("jobs", [1, 2, 3, 20])
def test_every_scenario_is_in_exactly_one_share(jobs: int) -> None:
    shares = [_names(Share(n, jobs).pick(ITEMS)) for n in range(jobs)]
    assert sorted(functools.reduce(operator.iadd, shares, [])) == sorted(_names(ITEMS))
    for share in shares:
        assert share == [name for name in _names(ITEMS) if name in share]


def test_a_small_file_stays_whole_and_a_large_one_is_divided() -> None:
    shares = [_names(Share(n, 2).pick(ITEMS)) for n in range(2)]
    assert sum(any(name.startswith("a.py") for name in share) for share in shares) == 1
    assert all(any(name.startswith("b.py") for name in share) for share in shares)


def test_known_seconds_make_shares_even() -> None:
    remember_seconds("uml", [ScenarioResult("a.py::a0", Outcome.PASSED, 100.0)])
    with_long = [_names(Share(n, 2, "uml").pick(ITEMS)) for n in range(2)]
    (long,) = [share for share in with_long if "a.py::a0" in share]
    assert not any(name.startswith("b.py") for name in long)


def test_runs_that_end_at_the_same_moment() -> None:
    result = ScenarioResult("a.py::a0", Outcome.PASSED, 100.0)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(remember_seconds, ["uml"] * 200, [[result]] * 200)) == [None] * 200
    assert [file.name for file in paths.cache().iterdir()] == ["seconds-uml.json"]


def _part(outcome: Outcome, verdict: Verdict) -> Callable[[Share, Path], RunResults]:
    def part(share: Share, directory: Path) -> RunResults:
        directory.mkdir(parents=True)
        (directory / "junit.xml").write_text("<testsuites><testsuite name='x'/></testsuites>")
        scenario = ScenarioResult(f"t{share.number}.py::t", outcome, 1.0, directory="scenarios/t")
        timings = {"first_scenario_s": 1.0 + share.number, "hosts": 2.0 + share.number}
        return RunResults(
            directory, scenarios=[scenario], timings=timings, verdict=verdict, notes=["same"]
        )

    return part


def test_parts_are_one_result(tmp_path: Path) -> None:
    run = tmp_path / "results" / "run"
    found = run_in_parts(_part(Outcome.PASSED, Verdict.PASSED), 2, run, Progress(quiet=True))
    assert found.verdict is Verdict.PASSED
    record = json.loads((run / "run.json").read_text())
    assert [s["directory"] for s in record["scenarios"]] == [
        "part-1/scenarios/t",
        "part-2/scenarios/t",
    ]
    assert record["timings"] == {"first_scenario_s": 1.0, "hosts": 3.0}
    assert record["notes"] == ["same"]
    assert len(ET.parse(run / "junit.xml").getroot().findall("testsuite")) == 2
    assert (run / "report.html").exists()
    assert (run.parent / "latest").resolve() == run


def test_what_all_parts_say_is_shown_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    progress = Progress()

    def part(share: Share, directory: Path) -> RunResults:
        with contextlib.suppress(ProvisionError), progress.phase("m", "starting machine machine"):
            raise ProvisionError("libvirt refused")
        progress.say(f"FAIL environment::provide 0.{share.number} s: libvirt refused")
        progress.say(f"FAIL t{share.number}.py::t 1.0 s")
        message = f"libvirt refused\n02:38:2{share.number}: {os.getpid()}: info"
        provide = ScenarioResult("environment::provide", Outcome.FAILED, message=message)
        found = _part(Outcome.NOT_RUN, Verdict.NOT_PROVIDED)(share, directory)
        return dataclasses.replace(found, scenarios=[provide, *found.scenarios])

    found = run_in_parts(part, 3, tmp_path / "results" / "run", progress)
    assert [s.id for s in found.scenarios] == [
        *("environment::provide", "t0.py::t", "t1.py::t", "t2.py::t")
    ]
    said = [line.partition("] ")[2] for line in capfd.readouterr().err.splitlines()]
    shown = [line for line in said if "machine" in line or "provide" in line]
    assert len(shown) == 3, said
    assert len([line for line in said if ".py::t" in line]) == 3


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Outcome.FAILED, Verdict.FAILED),
        (Outcome.NOT_RUN, Verdict.INTERRUPTED),
        (Outcome.NOT_RUN, Verdict.NOT_PROVIDED),
    ],
)
def test_the_gravest_verdict_counts(tmp_path: Path, outcome: Outcome, verdict: Verdict) -> None:
    def part(share: Share, directory: Path) -> RunResults:
        if share.number:
            return _part(Outcome.PASSED, Verdict.PASSED)(share, directory)
        return _part(outcome, verdict)(share, directory)

    run = tmp_path / "results" / "run"
    assert run_in_parts(part, 2, run, Progress(quiet=True)).verdict is verdict


@pytest.mark.parametrize(
    "error", [UsageError("bad", hint="do this"), CommandFailed(["x"], 3, "said")]
)
def test_what_a_part_raises_is_raised(tmp_path: Path, error: Exception) -> None:
    def part(share: Share, directory: Path) -> RunResults:
        raise error

    with pytest.raises(type(error), match=str(error)):
        run_in_parts(part, 2, tmp_path / "run", Progress(quiet=True))


def test_a_part_that_dies_is_an_error(tmp_path: Path) -> None:
    def part(share: Share, directory: Path) -> RunResults:
        os._exit(1)

    with pytest.raises(RuntimeError, match="ended without a result"):
        run_in_parts(part, 2, tmp_path / "run", Progress(quiet=True))


def test_ctrl_c_reaches_all_parts(tmp_path: Path) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def part(share: Share, directory: Path) -> RunResults:
        # From the handler on, since the signal may come at once.
        with contextlib.suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, interrupted)
            (tmp_path / f"ready-{share.number}").touch()
            if share.number == 0:
                while not (tmp_path / "ready-1").exists():
                    time.sleep(0.01)
                os.kill(os.getppid(), signal.SIGINT)
            time.sleep(60)
        return _part(Outcome.NOT_RUN, Verdict.INTERRUPTED)(share, directory)

    found = run_in_parts(part, 2, tmp_path / "results" / "run", Progress(quiet=True))
    assert found.verdict is Verdict.INTERRUPTED
    assert len(found.scenarios) == 2


def test_ctrl_c_while_parts_are_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(share: Share, directory: Path) -> RunResults:
        signal.pause()  # the signal that is passed on ends this process
        raise AssertionError

    def share(number: int, jobs: int, kind: str) -> Share:
        if number == 1:
            signal.raise_signal(signal.SIGINT)
        return Share(number, jobs, kind)

    def recorded(directory: Path, why: str) -> RunResults:
        return _part(Outcome.NOT_RUN, Verdict.INTERRUPTED)(Share(0, 1, ""), directory)

    monkeypatch.setattr(shards, "Share", share)
    monkeypatch.setattr(shards, "recorded", recorded)
    began = time.monotonic()
    found = run_in_parts(part, 2, tmp_path / "results" / "run", Progress(quiet=True))
    assert found.verdict is Verdict.INTERRUPTED
    assert time.monotonic() - began < 30
