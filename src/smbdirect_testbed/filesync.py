"""Bringing a copy of some files up to date, so that make rebuilds what changed and no more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path


def sync(source: Path, target: Path, record: Path) -> None:
    """Make ``target`` a copy of a file or directory, touching only what differs in content.

    A file that did differ gets the time of now: its own could be older than what was built from
    the version before. What a build added to ``target`` stays.

    :param record: a file that remembers what was copied, so that what vanished from ``source``
        vanishes from ``target``
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


def copy_out(source: Path, target: Path) -> None:
    """Copy a file or a whole directory, with times and modes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def _files(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    if source.is_dir():
        for file in sorted(source.rglob("*")):
            if file.is_file():
                yield target / file.relative_to(source), file
    else:
        yield target, source
