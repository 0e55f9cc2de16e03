"""Files below a directory in which somebody else makes links."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from smbdirect_testbed.lib.untrusted import Unsafe, UntrustedDirectory


@pytest.fixture
def shared(tmp_path: Path) -> UntrustedDirectory:
    (tmp_path / "shared").mkdir()
    return UntrustedDirectory(tmp_path / "shared")


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of this computer's."""
    file = tmp_path / "precious/key"
    file.parent.mkdir()
    file.write_text("private")
    return file


def test_files_come_and_go(shared: UntrustedDirectory, tmp_path: Path) -> None:
    shared.write("a/b/c", "text", 0o600)
    assert shared.read("a/b/c", most=4) == b"text"
    assert (shared.top / "a/b/c").stat().st_mode & 0o777 == 0o600
    assert shared.read_end("a/b/c", most=2) == b"xt"
    assert shared.names("a/b") == ["c"]
    assert shared.names("a") == shared.names("none") == []
    shared.write("a/b/c", b"other")
    shared.take("a", tmp_path / "taken")
    assert (tmp_path / "taken/b/c").read_text() == "other"
    os.utime(tmp_path / "taken/b/c", (1, 2))
    (tmp_path / "taken/b/c").chmod(0o755)
    shared.put(tmp_path / "taken", "a")
    assert (shared.top / "a/b/c").stat().st_mtime == 2
    assert (shared.top / "a/b/c").stat().st_mode & 0o777 == 0o755
    shared.remove("a")
    shared.remove("a/b")
    assert not (shared.top / "a").exists()
    with pytest.raises(FileNotFoundError):
        shared.read("a/b", most=1)


def test_threads_put_the_same_file(shared: UntrustedDirectory, tmp_path: Path) -> None:
    """The file is whole at all times, and nothing else is left."""
    source = tmp_path / "program.py"
    source.write_bytes(b"x" * (1 << 16))
    failures: list[BaseException] = []

    def put() -> None:
        try:
            for _ in range(50):
                shared.put(source, source.name)
                assert shared.read(source.name, most=1 << 16) == source.read_bytes()
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert shared.names() == [source.name]


def test_a_file_takes_the_place_of_a_directory(shared: UntrustedDirectory, precious: Path) -> None:
    shared.write("key/x", "text")
    shared.put(precious, "key")
    assert shared.read("key", most=7) == b"private"


def test_too_large_a_file_is_not_read(shared: UntrustedDirectory) -> None:
    with (shared.top / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Unsafe, match="more than 1024 bytes"):
        shared.read("large", most=1024)
    assert shared.read_end("large", most=2) == b"\0\0"


@pytest.mark.parametrize("name", ["../precious/key", "a/../../precious/key", "/etc/hostname"])
def test_names_lead_nowhere_else(shared: UntrustedDirectory, precious: Path, name: str) -> None:
    with pytest.raises(Unsafe, match="leads out of"):
        shared.read(name, most=100)
    with pytest.raises(Unsafe, match="leads out of"):
        shared.write(name, "")
    assert precious.read_text() == "private"


def test_links_are_not_read(shared: UntrustedDirectory, precious: Path, tmp_path: Path) -> None:
    (shared.top / "file").symlink_to(precious)
    (shared.top / "directory").symlink_to(precious.parent)
    reads: list[Callable[[str], object]] = [
        lambda name: shared.read(name, most=100),
        lambda name: shared.read_end(name, most=100),
        lambda name: shared.take(name, tmp_path / "taken"),
    ]
    for read in reads:
        for name in ("file", "directory/key"):
            with pytest.raises(Unsafe):
                read(name)
    assert not (tmp_path / "taken").exists()
    assert shared.names() == []
    with pytest.raises(Unsafe):
        shared.names("directory")
    assert not shared.is_file("file")


def test_links_in_a_directory_are_not_taken_for_files(
    shared: UntrustedDirectory, precious: Path, tmp_path: Path
) -> None:
    (shared.top / "all/more").mkdir(parents=True)
    (shared.top / "all/more/link").symlink_to(precious)
    shared.take("all", tmp_path / "taken")
    assert (tmp_path / "taken/more/link").is_symlink()


def test_links_are_replaced_and_not_written_through(
    shared: UntrustedDirectory, precious: Path, tmp_path: Path
) -> None:
    (tmp_path / "ours/d").mkdir(parents=True)
    (tmp_path / "ours/d/key").write_text("ours")
    writes: list[Callable[[], None]] = [
        lambda: shared.write("d/key", "new"),
        lambda: shared.put(tmp_path / "ours/d", "d"),
        lambda: shared.put(tmp_path / "ours/d/key", "d/key"),
        lambda: shared.make_directory("d"),
    ]
    for write in writes:
        shared.remove("d")
        (shared.top / "d").symlink_to(precious.parent)
        write()
        assert not (shared.top / "d").is_symlink()
        shared.remove("d")
        (shared.top / "d").mkdir()
        (shared.top / "d/key").symlink_to(precious)
        write()
    shared.remove("d")
    (shared.top / "d").symlink_to(precious.parent)
    shared.remove("d")
    assert precious.read_text() == "private"


@pytest.mark.skipif(os.geteuid() != 0, reason="devices are made by root")
def test_what_is_no_file_is_not_opened(shared: UntrustedDirectory) -> None:
    os.mkfifo(shared.top / "fifo")
    os.mknod(shared.top / "device", 0o20600, os.makedev(1, 3))
    for name in ("fifo", "device"):
        with pytest.raises(Unsafe):
            shared.read(name, most=1)
        shared.write(name, "text")
        assert shared.read(name, most=4) == b"text"


def test_a_name_that_changes_all_the_time(shared: UntrustedDirectory, precious: Path) -> None:
    """A directory, then a link, then a directory, while it is written below it."""
    ended = threading.Event()
    name = shared.top / "d"

    def change() -> None:
        changes: list[Callable[[], object]] = [
            lambda: name.symlink_to(precious.parent),
            name.unlink,
            name.mkdir,
            lambda: shutil.rmtree(name),
        ]
        while not ended.is_set():
            for one in changes:
                with suppress(OSError):
                    one()

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(2000):
            try:
                shared.write("d/key", "theirs")
            except (Unsafe, OSError):
                continue
    finally:
        ended.set()
        changing.join()
    assert precious.read_text() == "private"
