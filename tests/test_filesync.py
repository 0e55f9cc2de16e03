"""Copies that are brought up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from smbdirect_testbed.filesync import sync

Places = tuple[Path, Path, Path]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a.c").write_text("a")
    (source / "sub" / "b.c").write_text("b")
    return source, tmp_path / "target", tmp_path / "record"


def test_first_copy(places: Places) -> None:
    source, target, record = places
    (source / "a.c").chmod(0o700)
    sync(source, target, record)
    assert (target / "a.c").read_text() == "a"
    assert (target / "a.c").stat().st_mode & 0o777 == 0o755
    assert (target / "sub" / "b.c").read_text() == "b"


def test_only_what_differs_gets_a_new_time(places: Places) -> None:
    source, target, record = places
    sync(source, target, record)
    before = {p: (target / p).stat().st_mtime_ns for p in ("a.c", "sub/b.c")}
    (source / "a.c").write_text("A")
    (source / "sub" / "b.c").touch()
    sync(source, target, record)
    assert (target / "a.c").read_text() == "A"
    assert (target / "a.c").stat().st_mtime_ns > before["a.c"]
    assert (target / "sub/b.c").stat().st_mtime_ns == before["sub/b.c"]


def test_what_vanished_vanishes_and_what_was_built_stays(places: Places) -> None:
    source, target, record = places
    sync(source, target, record)
    (target / "a.o").touch()
    (source / "a.c").unlink()
    sync(source, target, record)
    assert sorted(p.name for p in target.iterdir()) == ["a.o", "sub"]


def test_a_single_file(places: Places) -> None:
    source, target, record = places
    sync(source / "a.c", target / "deep" / "a.c", record)
    assert (target / "deep" / "a.c").read_text() == "a"
