"""Noticing that source files were saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from watchfiles import Change, watch

from smbdirect_testbed.errors import UsageError

_SUFFIXES = {".c", ".h", ".py", ".toml", ".asn1"}
_NAMES = {"Makefile", "Kbuild", "Kconfig"}
_QUIET_MS = 300
"""Milliseconds without another change until a save is over: editors and git write many files."""


def saves(places: Iterable[Path]) -> Iterator[list[Path]]:
    """The source files that were saved, each time that some were; ends with Ctrl-C.

    :param places: files and directories; those that do not exist are left out
    :raises UsageError: none of them exists
    """
    there = [place for place in places if place.exists()]
    if not there:
        raise UsageError("there is nothing to watch")
    for changes in watch(*there, watch_filter=_is_source, debounce=1600, step=_QUIET_MS):
        yield sorted({Path(path) for _, path in changes})


def _is_source(_change: Change, path: str) -> bool:
    file = Path(path)
    # What kbuild makes beside the sources is no save: cifs.mod.c.
    if file.name.endswith(".mod.c"):
        return False
    return file.suffix in _SUFFIXES or file.name in _NAMES
