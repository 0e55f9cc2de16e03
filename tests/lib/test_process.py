"""Commands: results as values, failures with their evidence, no orphans."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smbdirect_testbed.lib import process
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.wait import wait_until


def test_result() -> None:
    done = process.run(["sh", "-c", "cat; echo oops >&2; exit 3"], input="in", check=False)
    assert (done.status, done.stdout, done.stderr, done.ok) == (3, "in", "oops\n", False)


def test_failure_shows_command_status_output_and_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "x.log"
    with pytest.raises(CommandFailed) as error:
        process.run(["sh", "-c", "seq 100; exit 7"], log=log)
    assert "status 7" in error.value.message
    assert "seq 100" in error.value.message
    assert str(log) in (error.value.hint or "")
    assert (error.value.detail or "").splitlines() == [str(n) for n in range(81, 101)]
    assert log.read_text().startswith("$ sh -c 'seq 100; exit 7'\n1\n")


def test_deadline_ends_the_children_too(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(CommandFailed, match="did not end in time"):
        process.run(["sh", "-c", f"sleep 100 & echo $! >{pid_file}; wait"], timeout=0.5)
    wait_until(lambda: not _runs(int(pid_file.read_text())) or None, "the child to end", timeout=5)


def test_interrupt_ends_the_children_too(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = (
        "from smbdirect_testbed.lib import process\n"
        f"process.run(['sh', '-c', 'sleep 100 & echo $! >{pid_file}; wait'])"
    )
    proc = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    wait_until(lambda: (pid_file.exists() and pid_file.read_text()) or None, "start", timeout=20)
    proc.send_signal(signal.SIGINT)
    assert proc.wait(timeout=10) != 0
    wait_until(lambda: not _runs(int(pid_file.read_text())) or None, "the child to end", timeout=5)


def test_a_missing_program_is_an_error_of_its_own() -> None:
    with pytest.raises(ProvisionError, match="cannot run no-such-program"):
        process.run(["no-such-program"])


def test_wait_until_returns_the_value_or_says_what_was_waited_for() -> None:
    values = iter([None, 0, 5])
    assert wait_until(lambda: next(values), "a value", timeout=5, interval=0) == 5
    with pytest.raises(ProvisionError, match="timed out after 0 s waiting for a cow"):
        wait_until(lambda: None, "a cow", timeout=0)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
