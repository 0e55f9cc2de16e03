"""Noticing that source files were saved."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from smbdirect_testbed.errors import UsageError
from smbdirect_testbed.saves import saves


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
        assert next(iter(saves([tmp_path, tmp_path / "not-there"]))) == [source]
    finally:
        done.set()
        thread.join()


def test_nothing_to_watch_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to watch"):
        next(iter(saves([tmp_path / "not-there"])))
