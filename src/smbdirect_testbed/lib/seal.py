"""Seals of cache entries: an entry is whole, and what this user wrote, or it is made again.

A seal lists all files of an entry with their digests, and is written last. To read gigabytes at
every start would take seconds; so a file whose size, times, mode and inode are those of the seal
counts as unchanged. Nobody but root can set the change time. A copied file (of a CI cache) has
another one: then its content is read once.

The seal itself is signed with a key that is not in the cache: this user's, or that of the variable
``SMBDIRECT_TESTBED_CACHE_KEY``, which CI gives to those jobs that others trust. With the variable,
an entry of anybody else is made again. Without it, every user who can write to the cache is
trusted, but damage is still noticed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import platformdirs

from smbdirect_testbed.lib.errors import ProvisionError

_VARIABLE = "SMBDIRECT_TESTBED_CACHE_KEY"
_KEY_BYTES = 32
_BOOT = Path("/proc/sys/kernel/random/boot_id")

_File = list[int | str]
"""Mode, size, two times, inode, and the digest of its content, or where a link leads."""


@dataclass(frozen=True)
class Sealed:
    """An entry and its seal.

    :param entry: the directory
    :param file: the seal
    :param mutable: what is written to later, below the directory, and is in no seal
    """

    entry: Path
    file: Path
    mutable: frozenset[str] = frozenset()

    def seal(self) -> None:
        """Seal the entry as it is."""
        self._write({name: [*looked, _content(path)] for name, path, looked in self._files()})

    def is_sound(self) -> bool:
        """Whether the entry is what was sealed; seals one that has none, if there is no key.

        :raises ProvisionError: it belongs to another user
        """
        owner = self.entry.lstat().st_uid
        if owner != os.geteuid():
            raise ProvisionError(
                f"{self.entry} belongs to user {owner}",
                hint="set SMBDIRECT_TESTBED_CACHE to a directory of your own",
            )
        recorded, ours = self._read()
        if not ours and os.environ.get(_VARIABLE):
            return False
        if recorded is None:
            self.seal()
            return True
        if ours:
            return self._agrees(recorded, ours=True)
        # Another user's seal stays: containers may share a cache with the computer they are on.
        sound = self.was_sound_since_boot() or self._agrees(recorded, ours=False)
        if sound:
            self.note_sound()
        return sound

    def note_sound(self) -> None:
        """Remember, outside of the cache, that this very entry was found sound."""
        note = self._note
        # A home that cannot be written to costs another look.
        with suppress(OSError):
            note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            note.write_text(self._found_now())

    def was_sound_since_boot(self) -> bool:
        """Whether the entry, with this seal, was found sound since the computer was started."""
        try:
            return self._note.read_text() == self._found_now()
        except OSError:
            return False

    @property
    def _note(self) -> Path:
        return _own_directory() / "sound" / self.file.name

    def _found_now(self) -> str:
        entry, sealed = self.entry.lstat(), self.file.lstat()
        boot = _BOOT.read_text().strip()
        return f"{boot} {self.entry} {entry.st_ino} {sealed.st_ino} {sealed.st_ctime_ns}"

    def _agrees(self, recorded: Mapping[str, _File], *, ours: bool) -> bool:
        found: dict[str, _File] = {}
        for name, path, looked in self._files():
            known = recorded.get(name)
            if known is None:
                return False
            # Without our signature the times are somebody else's word.
            same = ours and known[:-1] == looked
            digest = known[-1] if same else _content(path)
            if digest != known[-1] or looked[0] != known[0]:
                return False
            found[name] = [*looked, digest]
        if found.keys() != recorded.keys():
            return False
        if ours and found != recorded:
            self._write(found)
        return True

    def _files(self) -> Iterator[tuple[str, Path, list[int]]]:
        """All that is in the entry: name, path, and what changes when it does."""
        directories = [""]
        while directories:
            above = directories.pop()
            with os.scandir(self.entry / above) as entries:
                for entry in entries:
                    name = f"{above}{entry.name}"
                    if name in self.mutable:
                        continue
                    found = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(f"{name}/")
                        yield name, Path(entry.path), [found.st_mode, 0, 0, 0, 0]
                    else:
                        times = [found.st_mtime_ns, found.st_ctime_ns]
                        looked = [found.st_mode, found.st_size, *times, found.st_ino]
                        yield name, Path(entry.path), looked

    def _read(self) -> tuple[dict[str, _File] | None, bool]:
        """What is recorded, and whether it is signed with our key."""
        try:
            data = json.loads(self.file.read_text())
            files, signature = data["files"], str(data["signature"])
        except (OSError, ValueError, KeyError, TypeError):
            return None, False
        return files, hmac.compare_digest(signature, self._signature(files))

    def _write(self, files: Mapping[str, _File]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_suffix(f".{os.getpid()}.new")
        new.write_text(json.dumps({"signature": self._signature(files), "files": dict(files)}))
        new.replace(self.file)

    def _signature(self, files: Mapping[str, _File]) -> str:
        # With its name, so that no entry is taken for another.
        text = json.dumps([self.file.name, files], sort_keys=True)
        return hmac.new(_key(), text.encode(), hashlib.sha256).hexdigest()


def _content(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return str(path.readlink())
    if not stat.S_ISREG(mode):
        return str(path.lstat().st_rdev)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_directory() -> Path:
    """Where this user keeps what no cache may hold."""
    return Path(platformdirs.user_data_dir("smbdirect-testbed"))


def _key() -> bytes:
    if given := os.environ.get(_VARIABLE):
        return given.encode()
    file = _own_directory() / "cache-key"
    with suppress(FileNotFoundError):
        return file.read_bytes()
    try:
        return _new_key(file)
    except OSError:
        return _passing_key()


@cache
def _passing_key() -> bytes:
    """The key of a user whose home cannot be written to: what this process seals is its own."""
    return secrets.token_hex(_KEY_BYTES).encode()


def _new_key(file: Path) -> bytes:
    """Keep a new key in a file, or use that of another process that was sooner."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        # By a link, so that nobody reads half of it.
        new = file.with_name(f".{file.name}.{os.getpid()}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.write(secrets.token_hex(_KEY_BYTES))
        try:
            file.hardlink_to(new)
        finally:
            new.unlink()
    return file.read_bytes()
