"""Removing leftovers of killed runs and, on request, the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from smbdirect_testbed.carriers.start import destroy_strays
from smbdirect_testbed.environment.instance import orphans
from smbdirect_testbed.image import mmdebstrap
from smbdirect_testbed.lib import cache as cache_entries
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.progress import Progress


@dataclass(frozen=True)
class Waste:
    """Something that can be removed.

    :param what: its kind, in words
    :param size: bytes it takes on disk
    :param remove: removes it
    """

    what: str
    path: Path
    size: int
    remove: Callable[[], None]


def remove_orphans(progress: Progress) -> None:
    """Remove the leftovers of killed runs, and say so."""
    cache_entries.remove_leftovers()
    mmdebstrap.remove_leftovers()
    for orphan in orphans():
        progress.say(f"removing {orphan.name}, left by a killed run")
        orphan.remove()
    for directory in destroy_strays():
        progress.say(f"ended a machine whose directory {directory} was removed while it ran")


def find_waste(*, cache: bool) -> list[Waste]:
    """Orphans, and with ``cache`` every entry of the cache."""
    waste = [
        Waste("orphan of a killed run", o.directory, _size(o.directory), o.remove)
        for o in orphans()
    ]
    if cache and paths.cache().exists():
        waste += [
            Waste("cache", p, _size(p), partial(cache_entries.remove, p))
            for p in sorted(paths.cache().iterdir())
        ]
    return waste


def _size(path: Path) -> int:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(f.lstat().st_blocks * 512 for f in files)
