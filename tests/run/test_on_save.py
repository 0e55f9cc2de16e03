"""Noticing that source files were saved."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from smbdirect_testbed.lib.errors import ExitStatus, UsageError
from smbdirect_testbed.lib.wait import wait_until
from smbdirect_testbed.run.on_save import in_child, saves


def test_a_saved_source_file_is_noticed_and_a_built_one_is_not(tmp_path: Path) -> None:
    source = tmp_path / "socket.c"
    source.write_text("old")

    def save() -> None:
        for _ in range(100):
            (tmp_path / "socket.mod.c").write_text("built")
            (tmp_path / "socket.o").write_text("built")
            source.write_text(f"{time.time_ns()}")
            if done.wait(0.3):
                return

    done = threading.Event()
    thread = threading.Thread(target=save)
    thread.start()
    try:
        noticed = saves([tmp_path, tmp_path / "not-there"])
        while not (saved := next(noticed)):
            pass
        assert saved == [source]
    finally:
        done.set()
        thread.join()


def test_a_save_is_not_missed_while_nobody_asks(tmp_path: Path) -> None:
    source = tmp_path / "socket.c"
    source.write_text("old")
    noticed = saves([tmp_path])
    while next(noticed):
        pass
    source.write_text("new")
    (tmp_path / "include/generated").mkdir(parents=True)
    (tmp_path / "include/generated/built.h").touch()
    (tmp_path / ".#socket.c").symlink_to("the-mark-of-an-editor")
    assert next(noticed) == [source]


def test_each_run_reads_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def work() -> int:
        return int(importlib.import_module("saved_again").STATUS)

    for status in (3, 0, 2):
        (tmp_path / "saved_again.py").write_text(f"STATUS = {status}\n")
        assert in_child(work) == status


def test_ctrl_c_ends_the_run_and_waits_until_it_has_cleaned_up(tmp_path: Path) -> None:
    script = f"""
import pathlib, signal, sys, time
from smbdirect_testbed.run.on_save import in_child
def end(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, end)
def work():
    try:
        pathlib.Path({str(tmp_path / "begun")!r}).touch()
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.5)
        pathlib.Path({str(tmp_path / "undone")!r}).touch()
        return 130
sys.exit(in_child(work))
"""
    with subprocess.Popen([sys.executable, "-c", script], start_new_session=True) as proc:
        wait_until((tmp_path / "begun").exists, "the child to begin", timeout=30)
        os.killpg(proc.pid, signal.SIGINT)
        assert proc.wait(timeout=30) == ExitStatus.INTERRUPTED
    assert (tmp_path / "undone").exists()


def test_nothing_to_watch_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to watch"):
        next(iter(saves([tmp_path / "not-there"])))


_STANDS_STILL = """
import signal, sys, time
from smbdirect_testbed.run import on_save
on_save._UNDOING = 0.2

def work():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("working", flush=True)
    time.sleep(600)
    return 0

sys.exit(on_save.in_child(work))
"""


def test_a_child_that_stands_still_is_killed_when_it_is_interrupted() -> None:
    with subprocess.Popen([sys.executable, "-c", _STANDS_STILL], stdout=subprocess.PIPE) as proc:
        assert proc.stdout
        assert proc.stdout.readline() == b"working\n"
        proc.send_signal(signal.SIGINT)
        assert proc.wait(timeout=20) == ExitStatus.INTERRUPTED
