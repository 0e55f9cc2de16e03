"""The cache: entries that are whole or not there."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from smbdirect_testbed.lib import cache, paths
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.lib.wait import wait_until


@pytest.fixture(autouse=True)
def cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMBDIRECT_TESTBED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(directory: Path) -> None:
    (directory / "file").write_text("content")


def not_called(_directory: Path) -> None:
    pytest.fail("the entry was made a second time")


def hidden(cache_directory: Path) -> list[Path]:
    return list(cache_directory.glob("*/.*"))


def test_an_entry_is_made_once(cache_directory: Path) -> None:
    entry = cache.provide("things", "one", fill, Progress(quiet=True))
    assert (entry / "file").read_text() == "content"
    assert cache.provide("things", "one", not_called, Progress(quiet=True)) == entry
    assert hidden(cache_directory) == []


def test_a_forced_entry_replaces_the_old_one(cache_directory: Path) -> None:
    entry = cache.provide("things", "one", fill, Progress(quiet=True))

    def other(directory: Path) -> None:
        (directory / "other").touch()

    assert cache.provide("things", "one", other, Progress(quiet=True), force=True) == entry
    assert [p.name for p in entry.iterdir()] == ["other"]
    assert hidden(cache_directory) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ProvisionError("no")])
def test_a_failure_leaves_nothing(cache_directory: Path, error: BaseException) -> None:
    def fail(directory: Path) -> None:
        fill(directory)
        raise error

    with pytest.raises((KeyboardInterrupt, ProvisionError)):
        cache.provide("things", "one", fail, Progress(quiet=True))
    assert list((cache_directory / "things").iterdir()) == []


def test_a_failed_refresh_keeps_the_old_entry() -> None:
    entry = cache.provide("things", "one", fill, Progress(quiet=True))

    def fail(_directory: Path) -> None:
        raise ProvisionError("no")

    with pytest.raises(ProvisionError):
        cache.provide("things", "one", fail, Progress(quiet=True), force=True)
    assert (entry / "file").read_text() == "content"


def test_a_full_disk_is_one_line() -> None:
    def fail(_directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ProvisionError, match="no space left on the disk"):
        cache.provide("things", "one", fail, Progress(quiet=True))


def test_space_is_checked_before() -> None:
    cache.require_space(paths.cache(), 0.0, "nothing")
    with pytest.raises(ProvisionError, match=r"needs 1e\+09 GiB"):
        cache.require_space(paths.cache(), 1e9, "everything")


def _hang(ready: Path) -> None:
    def make(directory: Path) -> None:
        fill(directory)
        ready.touch()
        signal.pause()

    cache.provide("things", "one", make, Progress(quiet=True))


def test_a_killed_run_holds_up_nobody(cache_directory: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = multiprocessing.get_context("fork").Process(target=_hang, args=(ready,))
    process.start()
    wait_until(ready.exists, "the other process to begin", timeout=10)
    cache.remove_leftovers()
    assert len(hidden(cache_directory)) == 1, "what a living process makes must stay"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    cache.remove_leftovers()
    assert hidden(cache_directory) == []
    entry = cache.provide("things", "one", fill, Progress(quiet=True))
    assert (entry / "file").is_file()


def _make_slowly(log: Path) -> None:
    def make(directory: Path) -> None:
        with log.open("a") as f:
            f.write("made\n")
        (directory / "file").touch()

    cache.provide("things", "one", make, Progress(quiet=True))


def test_of_two_runs_one_makes_and_the_other_waits(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_make_slowly, args=(log,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=20)
        assert process.exitcode == 0
    assert log.read_text() == "made\n"


def test_digest_keeps_parts_apart() -> None:
    assert cache.digest(["ab", "c"]) != cache.digest(["a", "bc"])
    assert cache.digest([b"a"]) == cache.digest(["a"])


def test_directories_without_write_permission_are_removed(tmp_path: Path) -> None:
    inner = tmp_path / "top" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    inner.chmod(0o500)
    (tmp_path / "top").chmod(0o500)
    cache.remove(tmp_path / "top")
    assert not (tmp_path / "top").exists()


def test_a_cache_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SMBDIRECT_TESTBED_CACHE", str(tmp_path / "file"))
    with pytest.raises(ProvisionError, match="cannot make directory"):
        cache.provide("things", "one", fill, Progress(quiet=True))


def test_a_program_that_met_a_full_disk(tmp_path: Path) -> None:
    full = CommandFailed(["ssh-keygen"], 1, "Saving key failed: No space left on device\n")
    with (
        pytest.raises(ProvisionError, match=f"^no space left on the disk of {tmp_path}$"),
        cache.disk_full_reported(tmp_path),
    ):
        raise full
    other = CommandFailed(["ssh-keygen"], 1, "no such option\n")
    with pytest.raises(CommandFailed, match="ssh-keygen"), cache.disk_full_reported(tmp_path):
        raise other
