"""Two users of one computer, of whom one is hostile."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from tests.helpers.other_user import OtherUser, needs_root, other_user

from smbdirect_testbed.carriers.machine_files import VmState, find_strays
from smbdirect_testbed.carriers.runtime_base import runtime_base
from smbdirect_testbed.carriers.uml import provide
from smbdirect_testbed.carriers.uml.state import UmlRecord, UmlState
from smbdirect_testbed.environment.instance import new_instance
from smbdirect_testbed.lib import cache, paths
from smbdirect_testbed.lib.progress import Progress

pytestmark = needs_root


@pytest.fixture
def victim() -> Iterator[OtherUser]:
    with other_user() as user:
        # As many distributions make it.
        user.home.chmod(0o755)
        yield user


@pytest.fixture
def hostile() -> Iterator[OtherUser]:
    with other_user() as user:
        yield user


_open: list[object] = []
"""What lasts as long as the process."""


def _all_below(directory: Path) -> list[str]:
    """What this user can read or write of a directory, and of all in it."""
    if not os.path.lexists(directory):
        return []
    allowed = [mode for mode in (os.R_OK, os.W_OK) if os.access(directory, mode)]
    found = [str(directory)] if allowed else []
    for above, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = Path(above, name)
            if os.access(path, os.R_OK) or os.access(path, os.W_OK):
                found.append(str(path))
    return found


def _run_once() -> tuple[Path, Path]:
    """What a run leaves on this computer while it lasts."""

    def make(directory: Path) -> None:
        (directory / "secret.c").write_text("unpublished")

    cache.provide("drivers", "one", make, Progress(quiet=True))
    with cache.lock("x", Progress(quiet=True), "x"):
        pass
    instance = new_instance("one", keep=True)
    _open.append(instance)
    made = instance.__enter__()
    state = VmState(made.directory / "machine")
    state.make()
    (state.runtime / "key").write_text("private")
    (state.shared / "log").write_text("private")
    return state.runtime, made.directory


def test_nothing_of_a_run_is_for_others(victim: OtherUser, hostile: OtherUser) -> None:
    runtime, directory = victim.call(_run_once)
    state, cached = victim.call(paths.state), victim.call(paths.cache)
    assert directory.is_relative_to(state)
    for own in (state, cached, runtime, runtime.parent):
        assert own.stat().st_uid == victim.uid
        assert hostile.call(partial(_all_below, own)) == []
    victim.call(lambda: VmState(directory / "machine").remove())
    assert not runtime.exists()


def _directory(name: Path) -> None:
    name.mkdir()
    name.chmod(0o777)


_TAKES: dict[str, Callable[[Path], None]] = {
    "directory": _directory,
    "link": lambda name: name.symlink_to("/var/tmp"),
    "link to nothing": lambda name: name.symlink_to("/nonexistent"),
    "file": lambda name: name.touch(),
}


def _free(name: Path) -> None:
    if name.is_dir() and not name.is_symlink():
        name.rmdir()
    else:
        name.unlink(missing_ok=True)


@pytest.mark.parametrize("how", _TAKES)
def test_a_name_in_tmp_that_another_has_taken(
    victim: OtherUser, hostile: OtherUser, how: str
) -> None:
    """Neither does that keep a user from running, nor does anything get where it leads."""
    taken = Path(f"/tmp/smbdirect-testbed-{victim.uid}")
    hostile.call(lambda: _TAKES[how](taken))
    directory = victim.home / "machine"
    try:

        def make() -> Path:
            state = VmState(directory)
            state.make()
            return state.runtime

        runtime = victim.call(make)
        assert runtime.stat().st_uid == runtime.parent.stat().st_uid == victim.uid
        assert runtime.parent.stat().st_mode & 0o777 == 0o700
        assert taken not in runtime.parents
        # Found again, also when the name is free.
        assert victim.call(lambda: VmState(directory).runtime) == runtime
        hostile.call(lambda: _free(taken))
        assert victim.call(lambda: VmState(directory).runtime) == runtime
        victim.call(lambda: (directory / "run").unlink())
        assert victim.call(lambda: [s.directory for s in find_strays()]) == [directory]
        victim.call(lambda: VmState(directory).remove())
        assert victim.call(runtime_base) == taken
    finally:
        _free(taken)


def test_memory_is_the_machines_alone(victim: OtherUser, hostile: OtherUser) -> None:
    def make() -> Path:
        record = UmlRecord("m", uuid4())
        place = provide._own_place(record, 1, UmlState(victim.home / "machine"))
        _open.append(place)
        own = place.__enter__()
        (own / "memory").write_text("x")
        return own

    own = victim.call(make)
    try:
        assert hostile.call(lambda: _all_below(own)) == []

        def removed() -> bool:
            try:
                own.rename(own.with_name("other"))
            except PermissionError:
                return False
            return True

        assert not hostile.call(removed)
    finally:
        victim.call(lambda: (own / "memory").unlink())
        own.rmdir()


def test_nobody_else_holds_a_lock(victim: OtherUser, hostile: OtherUser) -> None:
    victim.call(_run_once)
    lock = victim.call(lambda: paths.cache() / "locks" / "x")

    def hold() -> bool:
        try:
            with lock.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except PermissionError:
            return False
        return True

    assert not hostile.call(hold)
    victim.call(lambda: VmState(paths.state() / "one/machine").remove())
