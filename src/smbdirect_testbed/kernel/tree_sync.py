"""Updating a copy of some files so that make rebuilds only what changed.

A build writes to the copy, too. So no link in it is followed, and the records of what was copied
lie elsewhere.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from smbdirect_testbed.lib.untrusted import Unsafe, UntrustedDirectory

_LARGEST_SOURCE = 256 << 20
"""Bytes of a file that is compared."""


def sync(source: Path, target: UntrustedDirectory, name: PurePosixPath, record: Path) -> None:
    """Make a copy of a file or directory; write only files whose content differs.

    A copied file gets the current time: its own could be older than products of the version
    before. Build products in the copy stay.

    :param name: of the copy, in ``target``
    :param record: a file that lists what was copied, so that files deleted in ``source`` are
        deleted in the copy
    """
    wanted = {str(copy): original for copy, original in _files(source, name)}
    before = set(json.loads(record.read_text())) if record.is_file() else set()
    for stale in before - wanted.keys():
        target.remove(stale)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(sorted(before | wanted.keys())))
    for copy, original in wanted.items():
        program = bool(original.stat().st_mode & 0o100)
        _bring(target, copy, original.read_bytes(), 0o755 if program else 0o644)
    record.write_text(json.dumps(sorted(wanted)))


def sync_files(
    wanted: Mapping[str, str],
    source: Path,
    target: UntrustedDirectory,
    record: Path,
    there: Iterable[str],
) -> int:
    """Do what :func:`sync` does for many files; files known to be equal are not read.

    A later call repairs what an interrupted one left.

    :param wanted: digest of content and mode by name; a mode is that of a program if its digest
        begins with ``x``
    :param there: names to be taken for earlier copies if there is no record, and so removed unless
        they are wanted
    :returns: how many files were copied or removed
    """
    try:
        copied: dict[str, str] = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        copied = dict.fromkeys(there, "")
    stale = copied.keys() - wanted.keys()
    differing = [name for name, digest in wanted.items() if copied.get(name) != digest]
    if not stale and not differing:
        return 0
    # Until the end, the record would be wrong about these files.
    _write_record(record, copied | dict.fromkeys([*stale, *differing], ""))
    for name in stale:
        target.remove(name)
    touched = len(stale)
    for name in differing:
        mode = 0o755 if wanted[name].startswith("x") else 0o644
        touched += _bring(target, name, (source / name).read_bytes(), mode)
    _write_record(record, wanted)
    return touched


def forget_last(directory: Path, seconds: float) -> None:
    """Remove the last written files below a directory, whose writer was interrupted.

    :param seconds: a file that was written this long before the last write of all is whole
    """

    def files() -> Iterator[tuple[str, int, float]]:
        for _, _, names, above in os.fwalk(directory):
            for name in names:
                yield name, above, os.stat(name, dir_fd=above, follow_symlinks=False).st_mtime

    newest = max((written for _, _, written in files()), default=0.0)
    for name, above, written in files():
        if written > newest - seconds:
            os.unlink(name, dir_fd=above)


def _bring(target: UntrustedDirectory, name: str, content: bytes, mode: int) -> bool:
    """Have a file there with that content; returns whether it was written."""
    try:
        same = target.read(name, most=_LARGEST_SOURCE) == content
    except (FileNotFoundError, Unsafe):
        same = False
    if same:
        found = target.status(name)
        if found and stat.S_IMODE(found.st_mode) & 0o100 != mode & 0o100:
            target.set_mode(name, mode)
        return False
    target.write(name, content, mode)
    return True


def _write_record(record: Path, digests: Mapping[str, str]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    new = record.with_name(record.name + ".new")
    new.write_text(json.dumps(dict(digests)))
    new.replace(record)


def _files(source: Path, name: PurePosixPath) -> Iterator[tuple[PurePosixPath, Path]]:
    if source.is_dir():
        for file in sorted(source.rglob("*")):
            if file.is_file():
                yield name / file.relative_to(source).as_posix(), file
    else:
        yield name, source
