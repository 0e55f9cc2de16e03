"""Work that is called off from another thread: it ends where it waits, and then cleans up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smbdirect_testbed.carriers.watched_run import run_watched
from smbdirect_testbed.lib import cancel, process
from smbdirect_testbed.lib.cancel import Cancel
from smbdirect_testbed.lib.errors import CommandFailed
from smbdirect_testbed.lib.wait import wait_until


def _called_off_when(begun: Callable[[], object], work: Callable[[], object]) -> float:
    """Do work that is called off once it has begun; returns how long it then took to raise."""
    asked = Cancel()
    requested: list[float] = []

    def request() -> None:
        wait_until(lambda: bool(begun()), "the work to begin", timeout=30)
        requested.append(time.monotonic())
        asked.request()

    thread = threading.Thread(target=request)
    thread.start()
    with asked.applied(), pytest.raises(KeyboardInterrupt):
        work()
    thread.join()
    return time.monotonic() - requested[0]


@pytest.mark.parametrize(
    "work",
    [
        lambda: wait_until(lambda: False, "nothing", timeout=30, interval=20),
        lambda: process.run(["sleep", "30"]),
        lambda: process.run(["sh", "-c", "cat; sleep 30"], input="x" * 1_000_000, timeout=30),
        lambda: run_watched(["sleep", "30"], input=None, timeout=30, watch=lambda: None),
        lambda: cancel.sleep(30),
    ],
)
def test_who_waits_is_called_off_at_once(work: Callable[[], object]) -> None:
    soon = time.monotonic() + 0.2
    assert _called_off_when(lambda: time.monotonic() > soon, work) < 5


def test_a_command_that_is_called_off_leaves_no_child(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = 'sleep 30 & echo $! >"$0"; wait'

    def begun() -> bool:
        return pid_file.exists() and pid_file.read_text().endswith("\n")

    _called_off_when(begun, lambda: process.run(["sh", "-c", script, pid_file]))
    stat = Path(f"/proc/{int(pid_file.read_text())}/stat")
    wait_until(lambda: not stat.exists() or ") Z" in stat.read_text(), "its end", timeout=5)


def test_a_command_keeps_its_deadline_and_its_output() -> None:
    with Cancel().applied():
        assert process.run(["cat"], input=b"text" * 100_000).stdout == "text" * 100_000
        with pytest.raises(CommandFailed) as caught:
            process.run(["sh", "-c", "echo begun; sleep 30"], timeout=0.3)
    assert caught.value.status is None
    assert caught.value.output == "begun\n"


def test_it_is_raised_once_and_then_one_may_wait() -> None:
    asked = Cancel()
    asked.request()
    with asked.applied():
        with pytest.raises(KeyboardInterrupt):
            cancel.point()
        cancel.point()
        cancel.sleep(0.01)
        assert process.run(["echo", "cleaned up"]).stdout == "cleaned up\n"
        with ThreadPoolExecutor() as pool:
            pool.submit(cancel.carried(cancel.point)).result()


def test_threads_that_work_for_it_raise_each() -> None:
    asked = Cancel()
    asked.request()
    with asked.applied(), ThreadPoolExecutor() as pool:
        works = [pool.submit(cancel.carried(cancel.point)) for _ in range(2)]
        for work in works:
            with pytest.raises(KeyboardInterrupt):
                work.result()
        pool.submit(cancel.point).result()
        with pytest.raises(KeyboardInterrupt):
            cancel.point()


def test_without_anyone_to_call_it_off() -> None:
    assert not cancel.applies()
    cancel.point()
    cancel.sleep(0)
