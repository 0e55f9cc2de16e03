"""Updating a copy of some files so that make rebuilds only what changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from smbdirect_testbed.lib import cache


def sync(source: Path, target: Path, record: Path) -> None:
    """Make ``target`` a copy of a file or directory; write only files whose content differs.

    A copied file gets the current time: its own could be older than products of the version
    before. Build products in ``target`` stay.

    :param record: a file that lists what was copied, so that files deleted in ``source`` are
        deleted in ``target``
    """
    wanted = dict(_files(source, target))
    before = {Path(p) for p in json.loads(record.read_text())} if record.is_file() else set()
    for stale in before - wanted.keys():
        stale.unlink(missing_ok=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps([str(p) for p in sorted(before | wanted.keys())]))
    for copy, original in wanted.items():
        content = original.read_bytes()
        if not copy.is_file() or copy.read_bytes() != content:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
        copy.chmod(0o755 if original.stat().st_mode & 0o100 else 0o644)
    record.write_text(json.dumps([str(p) for p in sorted(wanted)]))


def sync_files(
    wanted: Mapping[str, str], source: Path, target: Path, record: Path, there: Iterable[str]
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
    touched = 0
    for name in stale:
        cache.remove(target / name)
        touched += 1
    for name in differing:
        content = (source / name).read_bytes()
        copy = target / name
        mode = 0o755 if wanted[name].startswith("x") else 0o644
        if copy.is_file() and copy.read_bytes() == content:
            if copy.stat().st_mode & 0o100 != mode & 0o100:
                copy.chmod(mode)
            continue
        if copy.is_symlink() or copy.is_dir():
            cache.remove(copy)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
        copy.chmod(mode)
        touched += 1
    _write_record(record, wanted)
    return touched


def forget_last(directory: Path, seconds: float) -> None:
    """Remove the last written files below a directory, whose writer was interrupted.

    :param seconds: a file that was written this long before the last write of all is whole
    """
    times = {}
    for above, _, names in os.walk(directory):
        for file in map(Path(above).joinpath, names):
            times[file] = file.lstat().st_mtime
    newest = max(times.values(), default=0.0)
    for file, written in times.items():
        if written > newest - seconds:
            file.unlink()


def copy_out(source: Path, target: Path) -> None:
    """Copy a file or a directory, with times and modes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def _write_record(record: Path, digests: Mapping[str, str]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    new = record.with_name(record.name + ".new")
    new.write_text(json.dumps(dict(digests)))
    new.replace(record)


def _files(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    if source.is_dir():
        for file in sorted(source.rglob("*")):
            if file.is_file():
                yield target / file.relative_to(source), file
    else:
        yield target, source
