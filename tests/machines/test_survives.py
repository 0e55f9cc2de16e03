"""A driver that kills, hangs or leaks: a run goes on, ends soon, and says what it was."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.machines.conftest import Outcome, Testbed

from smbdirect_testbed.lib.wait import wait_until

pytestmark = pytest.mark.vm

_ENVIRONMENT = "uml-rxe"
_PANICS = """
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_it(client, number):
    client.run(["true"])
    if number in {panics}:
        client.run(["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 60"], timeout=90)
"""
_HANGS = """
import pytest

@pytest.mark.deadline(3)
def test_hangs(server):
    server.run(["sh", "-c", "exec python3 -c 'import time; time.sleep(600)'"], timeout=600)

def test_next(client):
    client.run(["true"])
"""
_LEAKS = """
def test_leaks(client):
    client.run(["sh", "-c", "mount -t tmpfs none /mnt; sleep 1000 >/dev/null 2>&1 &"])

def test_next(client):
    client.run(["true"])
"""
_CRASHES = """
def test_crashes(server):
    server.run(["sh", "-c", "sh -c 'kill -SEGV $$'; true"])

def test_next(client):
    client.run(["true"])
"""
_SLOW = """
import pytest

@pytest.mark.parametrize("number", range(3))
@pytest.mark.deadline(900)
def test_it(client, number):
    client.run(["sleep", "1000" if number == 1 else "0"], timeout=1000)
"""


def _scenarios(testbed: Testbed, text: str) -> str:
    file = testbed.directory / "test_mine.py"
    file.write_text(text)
    return str(file)


def _outcomes(outcome: Outcome) -> list[str]:
    return [s["outcome"] for s in outcome.record["scenarios"]]


def test_a_panic_costs_the_scenario_in_which_it_happened(testbed: Testbed) -> None:
    file = _scenarios(testbed, _PANICS.format(count=8, panics={1, 2, 5}))
    done = testbed.run("run", _ENVIRONMENT, file)
    assert done.status == 1
    expected = ["failed" if n in {1, 2, 5} else "passed" for n in range(8)]
    assert _outcomes(done) == expected
    assert "Kernel panic - not syncing: sysrq triggered crash" in done.output


def test_a_hang_says_what_it_waits_for(testbed: Testbed) -> None:
    begun = time.monotonic()
    done = testbed.run("run", _ENVIRONMENT, _scenarios(testbed, _HANGS))
    assert time.monotonic() - begun < 90
    assert _outcomes(done) == ["failed", "passed"]
    message = done.record["scenarios"][0]["message"]
    assert message.startswith("it did not end in ")
    assert "python3" in message
    log = (done.results / done.record["scenarios"][0]["directory"] / "hang.log").read_text()
    assert "== RDMA resources" in log


def test_what_is_left_behind_is_seen(testbed: Testbed) -> None:
    done = testbed.run("run", _ENVIRONMENT, _scenarios(testbed, _LEAKS))
    assert _outcomes(done) == ["failed", "passed"]
    message = done.record["scenarios"][0]["message"]
    assert "left behind: 1 mount /mnt of host client" in message
    assert "1 process sleep" in message


def test_a_program_that_dies_by_a_signal_is_seen(testbed: Testbed) -> None:
    """On both carriers: its core dump is in the results."""
    for environment in (_ENVIRONMENT, "rxe"):
        done = testbed.run("run", environment, _scenarios(testbed, _CRASHES))
        assert _outcomes(done) == ["failed", "passed"]
        scenario = done.record["scenarios"][0]
        assert re.match(r"sh \(process \d+\) died by SIGSEGV; its core", scenario["message"])
        (core,) = (done.results / scenario["directory"]).glob("core.sh.*")
        assert core.read_bytes().startswith(b"\x7fELF")


def _started(testbed: Testbed) -> tuple[subprocess.Popen[str], Path]:
    """A run whose first scenario has ended and whose second one is under way."""
    proc = testbed.start("run", _ENVIRONMENT, _scenarios(testbed, _SLOW))
    results = testbed.directory / "results"

    def record() -> Path | None:
        found = list(results.glob("2*/record.jsonl"))
        return found[0] if found and "test_it[0]" in found[0].read_text() else None

    def one_ended() -> Path | None:
        file = record()
        return file if file and '"scenario"' in file.read_text() else None

    return proc, wait_until(one_ended, "the first scenario to end", timeout=300).parent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_run_ends_within_seconds_and_has_results(
    testbed: Testbed, number: signal.Signals
) -> None:
    proc, directory = _started(testbed)
    begun = time.monotonic()
    proc.send_signal(number)
    proc.communicate(timeout=60)
    assert time.monotonic() - begun < 8  # 5 on a computer that does nothing else
    assert proc.returncode == 130
    found = json.loads((directory / "run.json").read_text())
    assert found["verdict"] == "interrupted"
    assert [s["outcome"] for s in found["scenarios"]] == ["passed", "not run", "not run"]
    assert (directory / "report.html").exists()


def test_the_next_command_completes_a_run_that_was_killed(testbed: Testbed) -> None:
    proc, directory = _started(testbed)
    proc.kill()
    proc.communicate(timeout=60)
    assert not (directory / "run.json").exists()
    status = testbed.run("status")
    assert "results of a run that was killed" in status.output
    found = json.loads((directory / "run.json").read_text())
    assert (found["verdict"], found["reason"]) == ("interrupted", "the run was killed")
    assert [s["outcome"] for s in found["scenarios"]] == ["passed", "not run", "not run"]
