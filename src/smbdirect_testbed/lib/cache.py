"""The cache: things that are expensive to make and can always be made again.

An entry is a directory that appears whole, by rename, or not at all, and is sealed (:mod:`.seal`).
Its name holds a digest of
everything that it is made from, so an entry is never out of date.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.lib.seal import Sealed

_GIB = 1 << 30
_WITHOUT_SEAL = ("templates",)
"""Kinds of entries that know by themselves whether they are whole."""
_WRITTEN_LATER = {"build-roots": frozenset({"records", "root/build", "root/dev", "root/tmp"})}
"""What builds write to."""
_SELDOM = ("build-roots",)
"""Kinds that have so many files that one look takes most of a second: once a boot is enough."""
_sound: set[Path] = set()
"""Entries that were looked at."""


def digest(parts: Iterable[str | bytes]) -> str:
    """A hexadecimal digest of a sequence of parts; no two sequences share one."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def provide(
    kind: str,
    name: str,
    make: Callable[[Path], None],
    progress: Progress,
    *,
    force: bool = False,
) -> Path:
    """The directory of an entry, which is made first if it is missing.

    If several runs need the same entry, one makes it and the others wait::

        images = provide("images", f"trixie-{digest}", build, progress)

    :param kind: the directory below the cache: "images"
    :param name: the entry's name, with its digest
    :param make: fills the directory it is given; if it fails, nothing stays
    :param force: make the entry again even if it exists
    """
    entry = paths.cache() / kind / name
    if not force and find(kind, name):
        return entry
    with lock(f"{kind}-{name}", progress, f"{kind}/{name}"):
        if not force and entry.is_dir():
            if find(kind, name):
                return entry
            progress.say(f"{entry} is damaged, or not of this user: making it again")
        parent = _directory(entry.parent)
        for left_over in parent.glob(f".{name}.*"):
            remove(left_over)
        new, old = parent / f".{name}.new", parent / f".{name}.old"
        try:
            with disk_full_reported(parent):
                new.mkdir()
                make(new)
            if entry.exists():
                entry.rename(old)
            new.rename(entry)
            if sealed := _sealed(kind, entry):
                sealed.seal()
                _sound.add(entry)
        finally:
            remove(new)
            remove(old)
    return entry


def find(kind: str, name: str) -> Path | None:
    """The directory of an entry, if it is there and is what was written.

    :raises ProvisionError: it belongs to another user
    """
    entry = paths.cache() / kind / name
    if not entry.is_dir():
        return None
    sealed = _sealed(kind, entry)
    # Once for a process: what changes later is changed by this user.
    if sealed and entry not in _sound:
        seldom = kind in _SELDOM
        if not (seldom and sealed.was_sound_since_boot()):
            if not sealed.is_sound():
                return None
            if seldom:
                sealed.note_sound()
        _sound.add(entry)
    return entry


def _sealed(kind: str, entry: Path) -> Sealed | None:
    if kind in _WITHOUT_SEAL:
        return None
    file = paths.cache() / "seals" / f"{kind}-{entry.name}.json"
    return Sealed(entry, file, _WRITTEN_LATER.get(kind, frozenset()))


def remove_leftovers() -> None:
    """Remove unfinished entries that killed runs left."""
    for left_over in paths.cache().glob("*/.*"):
        kind, name = left_over.parent.name, left_over.name[1:].rpartition(".")[0]
        file = paths.cache() / "locks" / f"{kind}-{name}"
        with suppress(OSError), file.open("w") as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(left_over)


@contextmanager
def lock(name: str, progress: Progress, what: str) -> Iterator[None]:
    """Hold a lock; wait for the process that holds it now.

    The lock ends with its process, however the process ends.

    :param what: the other process's work, in words
    """
    file = _directory(paths.cache() / "locks") / name
    with file.open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"waiting for another run that makes or uses {what} ...")
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def require_space(directory: Path, gib: float, what: str) -> None:
    """Check the free space of a directory's file system before something large is made.

    :raises ProvisionError: less than ``gib`` GiB are free
    """
    free = shutil.disk_usage(_directory(directory)).free / _GIB
    if free < gib:
        raise ProvisionError(
            f"{what} needs {gib:g} GiB in {directory}, and {free:.1f} GiB are free",
            hint="free some space (smbdirect-testbed clean), or set SMBDIRECT_TESTBED_CACHE",
        )


@contextmanager
def disk_full_reported(directory: Path) -> Iterator[None]:
    """Turn errors about a full disk into one line, including errors of programs."""
    try:
        yield
    except CommandFailed as e:
        if os.strerror(errno.ENOSPC) not in e.output:
            raise
        raise disk_full(directory) from e
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise disk_full(directory) from e


def disk_full(directory: Path) -> ProvisionError:
    """The error for a disk that became full during work in a directory."""
    return ProvisionError(
        f"no space left on the disk of {directory}",
        hint="free some space (smbdirect-testbed clean), or set SMBDIRECT_TESTBED_CACHE",
    )


def remove(path: Path) -> None:
    """Remove a file or a whole directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=_make_writable)
    else:
        path.unlink(missing_ok=True)


def log_file(name: str) -> Path:
    """An empty log that outlives a failed attempt to make an entry."""
    file = _directory(paths.cache() / "logs") / f"{name}.log"
    file.write_bytes(b"")
    return file


def _directory(path: Path) -> Path:
    try:
        # Trees that are nobody else's business are copied there.
        paths.cache().mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ProvisionError(
            f"cannot make directory {path}: {e.strerror}",
            hint="set SMBDIRECT_TESTBED_CACHE to a directory that you can write to",
        ) from e
    return path


def _make_writable(_function: object, name: str, _error: object) -> None:
    """Packages bring directories without write permission; their owner may remove them."""
    path = Path(name)
    if not path.exists() and not path.is_symlink():
        return
    path.parent.chmod(0o700)
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o700)
        shutil.rmtree(path)
    else:
        path.unlink()
