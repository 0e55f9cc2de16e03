"""Copies that are brought up to date."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pytest

from smbdirect_testbed.kernel.tree_sync import forget_last, sync, sync_files
from smbdirect_testbed.lib.untrusted import UntrustedDirectory

Places = tuple[Path, Path, Path]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a.c").write_text("a")
    (source / "sub" / "b.c").write_text("b")
    return source, tmp_path / "target", tmp_path / "record"


def _sync(source: Path, target: Path, record: Path) -> None:
    sync(source, UntrustedDirectory(target.parent), PurePosixPath(target.name), record)


def _sync_files(
    wanted: dict[str, str], source: Path, target: Path, record: Path, there: Iterable[str]
) -> int:
    return sync_files(wanted, source, UntrustedDirectory(target), record, there)


def test_first_copy(places: Places) -> None:
    source, target, record = places
    (source / "a.c").chmod(0o700)
    _sync(source, target, record)
    assert (target / "a.c").read_text() == "a"
    assert (target / "a.c").stat().st_mode & 0o777 == 0o755
    assert (target / "sub" / "b.c").read_text() == "b"


def test_only_what_differs_gets_a_new_time(places: Places) -> None:
    source, target, record = places
    _sync(source, target, record)
    before = {p: (target / p).stat().st_mtime_ns for p in ("a.c", "sub/b.c")}
    (source / "a.c").write_text("A")
    (source / "sub" / "b.c").touch()
    _sync(source, target, record)
    assert (target / "a.c").read_text() == "A"
    assert (target / "a.c").stat().st_mtime_ns > before["a.c"]
    assert (target / "sub/b.c").stat().st_mtime_ns == before["sub/b.c"]


def test_what_vanished_vanishes_and_what_was_built_stays(places: Places) -> None:
    source, target, record = places
    _sync(source, target, record)
    (target / "a.o").touch()
    (source / "a.c").unlink()
    _sync(source, target, record)
    assert sorted(p.name for p in target.iterdir()) == ["a.o", "sub"]


def test_a_single_file(places: Places) -> None:
    source, target, record = places
    sync(source / "a.c", UntrustedDirectory(target), PurePosixPath("deep/a.c"), record)
    assert (target / "deep" / "a.c").read_text() == "a"


WANTED = {"a.c": "-1", "sub/b.c": "-2"}


def test_many_files_known_to_be_the_same_are_not_looked_at(places: Places) -> None:
    source, target, record = places
    assert _sync_files(WANTED, source, target, record, ()) == 2
    (target / "sub/b.c").write_text("changed here, as a patch does")
    assert _sync_files(WANTED, source, target, record, ()) == 0
    (source / "a.c").write_text("edited")
    assert _sync_files({**WANTED, "a.c": "x3"}, source, target, record, ()) == 1
    assert (target / "a.c").read_text() == "edited"
    assert (target / "a.c").stat().st_mode & 0o111
    assert "changed here" in (target / "sub/b.c").read_text()


def test_of_many_files_what_vanished_vanishes_and_what_was_built_stays(places: Places) -> None:
    source, target, record = places
    _sync_files(WANTED, source, target, record, ())
    (target / "a.o").touch()
    assert _sync_files({"a.c": "-1"}, source, target, record, ()) == 1
    assert sorted(p.name for p in target.rglob("*")) == ["a.c", "a.o", "sub"]


def test_a_copy_without_a_record_keeps_the_times_of_what_is_the_same(places: Places) -> None:
    source, target, record = places
    _sync_files(WANTED, source, target, record, ())
    os.utime(target / "a.c", (1, 1))
    (target / "sub/b.c").write_text("another")
    (target / "stale.h").touch()
    record.unlink()
    assert _sync_files(WANTED, source, target, record, ["a.c", "stale.h"]) == 2
    assert (target / "a.c").stat().st_mtime == 1
    assert (target / "sub/b.c").read_text() == "b"
    assert not (target / "stale.h").exists()


def test_an_interrupted_copy_is_completed(places: Places) -> None:
    source, target, record = places
    _sync_files(WANTED, source, target, record, ())
    text = (source / "sub/b.c").read_text()
    (source / "sub/b.c").unlink()
    changed = {"a.c": "-4", "sub/b.c": "-5"}
    (source / "a.c").write_text("new")
    with pytest.raises(FileNotFoundError):
        _sync_files(changed, source, target, record, ())
    # As it was before: what is known of a file has to be forgotten before it is written to.
    (source / "a.c").write_text("a")
    (source / "sub/b.c").write_text(text)
    _sync_files(WANTED, source, target, record, ())
    assert (target / "a.c").read_text() == "a"


def test_what_was_written_last_is_forgotten(tmp_path: Path) -> None:
    now = time.time()
    for name, age in (("old.o", 300), ("sub/recent.o", 20), ("newest.o", 10)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now - age, now - age))
    (tmp_path / "link").symlink_to("nowhere")
    os.utime(tmp_path / "link", (now - 500, now - 500), follow_symlinks=False)
    forget_last(tmp_path, 60)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["link", "old.o", "sub"]
