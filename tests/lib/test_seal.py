"""Entries of the cache that were damaged, or written by somebody else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers.other_user import needs_root

from smbdirect_testbed.lib import cache, seal
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.progress import Progress

_KEY = "SMBDIRECT_TESTBED_CACHE_KEY"


class Cache:
    """A cache with one entry, of which it is counted how often it was made."""

    def __init__(self) -> None:
        self.made = 0

    def provide(self, kind: str = "kernels") -> Path:
        """The entry, as a process that has not looked at it yet gets it."""
        cache._sound.clear()
        return cache.provide(kind, "one", self._make, Progress(quiet=True))

    def _make(self, directory: Path) -> None:
        self.made += 1
        (directory / "sub").mkdir()
        (directory / "linux").write_text("kernel")
        (directory / "linux").chmod(0o755)
        (directory / "sub/link").symlink_to("../linux")
        (directory / "sub/module.ko").write_text("module")
        (directory / "root").mkdir()


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("SMBDIRECT_TESTBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv(_KEY, raising=False)
    return Cache()


def _replace(entry: Path) -> None:
    """Other content, with the same size and times."""
    file = entry / "linux"
    before = file.stat()
    file.write_text("rootit")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _relink(entry: Path) -> None:
    (entry / "sub/link").unlink()
    (entry / "sub/link").symlink_to("/bin/sh")


_DAMAGES: dict[str, Callable[[Path], object]] = {
    "replaced": _replace,
    "cut": lambda entry: os.truncate(entry / "sub/module.ko", 2),
    "lost": lambda entry: (entry / "sub/module.ko").unlink(),
    "added": lambda entry: (entry / "sub/more.ko").write_text("x"),
    "mode": lambda entry: (entry / "linux").chmod(0o4755),
    "link": _relink,
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_damaged_entry_is_made_again(
    entries: Cache, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    entry = entries.provide()
    assert entries.provide() == entry
    assert entries.made == 1
    _DAMAGES[damage](entry)
    entries.provide()
    assert entries.made == 2
    assert (entry / "linux").read_text() == "kernel"
    entries.provide()
    assert entries.made == 2


def test_content_is_not_read_at_every_start(
    entries: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries.provide()
    monkeypatch.setattr(seal, "_content", lambda path: pytest.fail(f"read {path}"))
    entries.provide()


def _copied_elsewhere(entry: Path) -> None:
    """As a CI cache does it."""
    shutil.copytree(entry, entry.with_name("copy"), symlinks=True)
    shutil.rmtree(entry)
    entry.with_name("copy").rename(entry)


def test_a_copied_cache_is_read_once_and_used(
    entries: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = entries.provide()
    _copied_elsewhere(entry)
    entries.provide()
    monkeypatch.setattr(seal, "_content", lambda path: pytest.fail(f"read {path}"))
    entries.provide()
    assert entries.made == 1


def test_a_damaged_copy_is_made_again(entries: Cache) -> None:
    entry = entries.provide()
    _copied_elsewhere(entry)
    (entry / "linux").write_text("x")
    entries.provide()
    assert entries.made == 2


def test_with_a_key_nobody_else_makes_entries(
    entries: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever poisons a cache seals it, too: a job without the key cannot do it right."""
    monkeypatch.setenv(_KEY, "of the trusted jobs")
    entry = entries.provide()
    _copied_elsewhere(entry)
    entries.provide()
    assert entries.made == 1
    monkeypatch.delenv(_KEY)
    _replace(entry)
    shutil.rmtree(tmp_path / "cache/seals")
    entries.provide()
    assert (entry / "linux").read_text() == "rootit"
    monkeypatch.setenv(_KEY, "of the trusted jobs")
    entries.provide()
    assert entries.made == 2
    assert (entry / "linux").read_text() == "kernel"
    shutil.rmtree(tmp_path / "cache/seals")
    entries.provide()
    assert entries.made == 3


def test_another_users_key_does_not_sign_here(
    entries: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Content is read then, since its times are that user's word."""
    entry = entries.provide()
    file = tmp_path / "cache/seals/kernels-one.json"
    recorded = json.loads(file.read_text())
    _replace(entry)
    found = (entry / "linux").stat()
    recorded["files"]["linux"][2:5] = [found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    file.write_text(json.dumps(recorded))
    entries.provide()
    assert entries.made == 2


def test_a_seal_is_of_one_entry(entries: Cache, tmp_path: Path) -> None:
    entries.provide()
    seals = tmp_path / "cache/seals"
    monkey = json.loads((seals / "kernels-one.json").read_text())
    assert (
        seal.Sealed(tmp_path, seals / "kernels-one.json")._signature(monkey["files"])
        == (monkey["signature"])
    )
    assert (
        seal.Sealed(tmp_path, seals / "kernels-two.json")._signature(monkey["files"])
        != (monkey["signature"])
    )


def test_what_builds_write_to_is_not_sealed(entries: Cache, tmp_path: Path) -> None:
    entry = entries.provide("build-roots")
    for name in ("records/file", "root/build/w/file", "root/tmp/file"):
        (entry / name).parent.mkdir(parents=True, exist_ok=True)
        (entry / name).touch()
    assert _again(entries, tmp_path) == 1
    (entry / "root/gcc").touch()
    assert _again(entries, tmp_path) == 2


def _again(entries: Cache, tmp_path: Path) -> int:
    """How often a build root was made, when it is looked at after the next boot."""
    shutil.rmtree(tmp_path / "data/smbdirect-testbed/sound", ignore_errors=True)
    entries.provide("build-roots")
    return entries.made


def test_a_build_root_is_looked_at_once_a_boot(
    entries: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = entries.provide("build-roots")
    entries.provide("build-roots")
    with monkeypatch.context() as patched:
        patched.setattr(seal.Sealed, "is_sound", lambda _: pytest.fail("looked again"))
        entries.provide("build-roots")
    _replace(entry)
    assert _again(entries, tmp_path) == 2
    # A copy is another one.
    entries.provide("build-roots")
    _copied_elsewhere(entry)
    (entry / "linux").write_text("x")
    entries.provide("build-roots")
    assert entries.made == 3


def test_the_key_is_private(entries: Cache, tmp_path: Path) -> None:
    entries.provide()
    key = tmp_path / "data/smbdirect-testbed/cache-key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(key.read_text()) == 64


def test_a_home_that_cannot_be_written_to(entries: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, an entry is used as another user's would be: damage is noticed."""
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/none")
    entry = entries.provide()
    entries.provide()
    assert entries.made == 1
    _replace(entry)
    seal._passing_key.cache_clear()
    entries.provide()
    assert entries.made == 2


@needs_root
def test_an_entry_of_another_user_is_not_used(entries: Cache) -> None:
    entry = entries.provide()
    os.chown(entry, 65534, -1)
    with pytest.raises(ProvisionError, match="belongs to user 65534"):
        entries.provide()
