"""Noticing saves of source files, and acting on each."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from watchfiles import Change, watch

from smbdirect_testbed.kernel.tree import is_built
from smbdirect_testbed.lib.errors import ExitStatus, UsageError

_SUFFIXES = {".c", ".h", ".S", ".py", ".toml", ".asn1"}
_NAMES = {"Makefile", "Kbuild", "Kconfig"}
_QUIET_MS = 150
"""Milliseconds without another change until a save is over: editors and git write many files."""

_LONGEST_SAVE_MS = 1600
_SOON_MS = 100
_PR_SET_PDEATHSIG = 1
_UNDOING = 20.0
"""Seconds that an interrupted child has to undo its work."""


def saves(places: Iterable[Path]) -> Iterator[list[Path]]:
    """The saved source files after each save; ends with Ctrl-C.

    The first list is empty: from then on no save is missed.

    :param places: files and directories; those that do not exist are left out
    :raises UsageError: none of them exists
    """
    there = [place for place in places if place.exists()]
    if not there:
        raise UsageError("there is nothing to watch")
    watched = watch(
        *there,
        watch_filter=_is_source,
        debounce=_LONGEST_SAVE_MS,
        step=_QUIET_MS,
        rust_timeout=_SOON_MS,
        yield_on_timeout=True,
    )
    saved = {Path(path) for _, path in next(watched)}
    yield []
    if saved:
        yield sorted(saved)
    for changes in watched:
        if changes:
            yield sorted({Path(path) for _, path in changes})


def in_child(work: Callable[[], int]) -> int:
    """Do work in a process of its own, and return its status.

    Python and pytest read a file once in the life of a process; the next child reads the saved
    files. Ctrl-C ends the child, which then undoes its work.
    """
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_work, args=(work,))
    child.start()
    interrupted = False
    while child.is_alive():
        try:
            child.join(_UNDOING if interrupted else None)
            if interrupted:
                # It stands still, for one in a lock that was held when it was forked.
                child.kill()
        except KeyboardInterrupt:
            if not interrupted:
                child.terminate()
            interrupted = True
    return ExitStatus.INTERRUPTED if interrupted else child.exitcode or ExitStatus.PASSED


def _work(work: Callable[[], int]) -> None:
    # Ctrl-C is for the parent, which passes it on. The child ends if the parent is killed.
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    status = work()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(status)


def _is_source(_change: Change, path: str) -> bool:
    file = Path(path)
    return (file.suffix in _SUFFIXES or file.name in _NAMES) and not is_built(file)
