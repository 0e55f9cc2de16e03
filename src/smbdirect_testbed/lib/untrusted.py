"""Files below a directory that a machine or a build writes to, too.

It may put a link in the place of any file or directory, at any moment, and wait for this process
to follow it to a file of this computer's. So nothing here follows one: each part of a name is
opened in the directory that was opened before it, never as a link, and only regular files are read
or written. A file that is written is always a new one.

::

    shared = UntrustedDirectory(machine.shared.here)
    shared.write("ssh/authorized_keys", key)
    shared.read("agent/1.out", most=1 << 20)
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO

from smbdirect_testbed.lib.errors import ProvisionError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS = (errno.ELOOP, errno.ENOTDIR)
_CHUNK = 1 << 22

Name = str | PurePath
"""Of a file, relative to the directory; without ``..``."""


class Unsafe(ProvisionError):
    """Something below an untrusted directory is not what it should be."""


@dataclass(frozen=True)
class UntrustedDirectory:
    """A directory below which nothing is followed.

    All methods raise :class:`Unsafe` when a link, or anything else that is neither a directory nor
    a regular file, is where one should be, and OSError as the system calls do.

    :param top: this directory itself is ours, and all above it
    """

    top: Path

    @contextmanager
    def open(self, name: Name) -> Iterator[BinaryIO]:
        """Open a regular file for reading."""
        with self._above(name) as (above, last):
            file = self._open_file(above, last, name)
        with os.fdopen(file, "rb") as opened:
            yield opened

    def read(self, name: Name, *, most: int) -> bytes:
        """What a file holds.

        :param most: bytes; a file with more is not what it should be
        """
        with self.open(name) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise Unsafe(f"{self.top / name} has more than {most} bytes")
        return content

    def read_end(self, name: Name, *, most: int) -> bytes:
        """The last bytes of a file."""
        with self.open(name) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - most))
            return file.read(most)

    @contextmanager
    def create(self, name: Name, mode: int = 0o644) -> Iterator[BinaryIO]:
        """Open a new file for writing, in place of what was there; makes directories above it."""
        with self._above(name, make=True) as (above, last):
            file = self._create(above, last, mode)
        with os.fdopen(file, "wb") as opened:
            yield opened

    def write(self, name: Name, content: bytes | str, mode: int = 0o644) -> None:
        """Write a new file, in place of what was there."""
        with self.create(name, mode) as file:
            file.write(content.encode() if isinstance(content, str) else content)

    def make_directory(self, name: Name, mode: int = 0o755) -> None:
        """Make a directory, unless it is there; a link in its place is removed."""
        with self._above(name, make=True) as (above, last):
            os.close(self._open_directory(above, last, name, mode=mode))

    def put(self, source: Path, name: Name) -> None:
        """Copy a file or a whole directory of this computer's there, with times and modes.

        Files that are there are replaced, others stay. Links in ``source`` are followed.
        """
        with self._above(name, make=True) as (above, last):
            self._put(source, above, last, name)

    def take(self, name: Name, target: Path) -> None:
        """Copy a file or a whole directory from there, with times and modes.

        Links stay what they are in a directory's copy: nothing is read through them.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._above(name) as (above, last):
            self._take(above, last, target, name)

    def remove(self, name: Name) -> None:
        """Remove a file, a link or a whole directory, if it is there."""
        with suppress(FileNotFoundError), self._above(name) as (above, last):
            _remove(above, last)

    def set_mode(self, name: Name, mode: int) -> None:
        """Set the mode of a regular file."""
        with self.open(name) as file:
            os.fchmod(file.fileno(), mode)

    def names(self, name: Name = ".") -> list[str]:
        """The names of the regular files in a directory; none if it is not there."""
        with (
            suppress(FileNotFoundError),
            self._directory(name) as directory,
            os.scandir(directory) as entries,
        ):
            return sorted(e.name for e in entries if e.is_file(follow_symlinks=False))
        return []

    def status(self, name: Name) -> os.stat_result | None:
        """Status of what is there, of a link itself; None if there is nothing."""
        with suppress(FileNotFoundError), self._above(name) as (above, last):
            return os.stat(last, dir_fd=above, follow_symlinks=False)
        return None

    def is_file(self, name: Name) -> bool:
        """Whether there is a regular file."""
        found = self.status(name)
        return found is not None and stat.S_ISREG(found.st_mode)

    @contextmanager
    def _directory(self, name: Name) -> Iterator[int]:
        """An open directory below this one."""
        with self._above(PurePath(name, "x")) as (directory, _):
            yield directory

    @contextmanager
    def _above(self, name: Name, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The open directory that something is in, and its name there."""
        *parts, last = PurePath(name).parts
        if PurePath(name).is_absolute() or ".." in (*parts, last):
            raise Unsafe(f"{name} leads out of {self.top}")
        if make:
            self.top.mkdir(parents=True, exist_ok=True)
        directory = os.open(self.top, _DIRECTORY)
        try:
            for part in parts:
                mode = 0o755 if make else None
                below = self._open_directory(directory, part, name, mode=mode)
                os.close(directory)
                directory = below
            yield directory, last
        finally:
            os.close(directory)

    def _open_directory(self, above: int, name: str, whole: Name, *, mode: int | None) -> int:
        """Open a directory; with a mode, make it if need be, in place of a link."""
        try:
            return os.open(name, _DIRECTORY, dir_fd=above)
        except FileNotFoundError:
            if mode is None:
                raise
        except OSError as e:
            if e.errno not in _LINKS:
                raise
            if mode is None:
                raise self._unsafe(whole) from e
            _remove(above, name)
        with suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=above)
        try:
            return os.open(name, _DIRECTORY, dir_fd=above)
        except OSError as e:
            raise self._unsafe(whole) from e

    def _open_file(self, above: int, name: str, whole: Name) -> int:
        # First as a name alone: to open a device or a FIFO can do something already.
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise self._unsafe(whole)
            return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(handle)

    def _create(self, above: int, name: str, mode: int) -> int:
        try:
            file = os.open(name, _NEW, mode, dir_fd=above)
        except FileExistsError:
            _remove(above, name)
            file = os.open(name, _NEW, mode, dir_fd=above)
        os.fchmod(file, mode)
        return file

    def _put(self, source: Path, above: int, name: str, whole: Name) -> None:
        found = source.stat()
        if not stat.S_ISDIR(found.st_mode):
            # Several threads may put the same file; it is whole at all times.
            new = f".{name}.{uuid.uuid4().hex}"
            try:
                with (
                    source.open("rb") as original,
                    os.fdopen(self._create(above, new, stat.S_IMODE(found.st_mode)), "wb") as copy,
                ):
                    shutil.copyfileobj(original, copy, _CHUNK)
                    copy.flush()
                    os.utime(copy.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
                _replace(above, new, name)
            except BaseException:
                _remove(above, new)
                raise
            return
        directory = self._open_directory(above, name, whole, mode=0o755)
        try:
            with os.scandir(source) as entries:
                for entry in entries:
                    self._put(Path(entry.path), directory, entry.name, whole)
        finally:
            os.close(directory)

    def _take(self, above: int, name: str, target: Path, whole: Name) -> None:
        found = os.stat(name, dir_fd=above, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            self._take_file(above, name, target, whole)
            return
        target.mkdir(exist_ok=True)
        directory = self._open_directory(above, name, whole, mode=None)
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        link = target / entry.name
                        link.unlink(missing_ok=True)
                        link.symlink_to(os.readlink(entry.name, dir_fd=directory))
                    else:
                        self._take(directory, entry.name, target / entry.name, whole)
        finally:
            os.close(directory)

    def _take_file(self, above: int, name: str, target: Path, whole: Name) -> None:
        with os.fdopen(self._open_file(above, name, whole), "rb") as original:
            found = os.fstat(original.fileno())
            with target.open("wb") as copy:
                shutil.copyfileobj(original, copy, _CHUNK)
                copy.flush()
                os.fchmod(copy.fileno(), stat.S_IMODE(found.st_mode) & 0o777)
                os.utime(copy.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))

    def _unsafe(self, name: Name) -> Unsafe:
        return Unsafe(
            f"{self.top / name} is a link, or leads through one, or is no regular file",
            hint="the machine or the build made it so: do not trust the code under test",
        )


def _replace(above: int, new: str, name: str) -> None:
    """Give a file another name, in place of what has it."""
    try:
        os.rename(new, name, src_dir_fd=above, dst_dir_fd=above)
    except IsADirectoryError:
        _remove(above, name)
        os.rename(new, name, src_dir_fd=above, dst_dir_fd=above)


def _remove(above: int, name: str) -> None:
    """Remove what a name stands for, a link itself, and a directory with all that is in it."""
    try:
        os.unlink(name, dir_fd=above)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        # Follows no link, by its own care.
        shutil.rmtree(name, dir_fd=above)
