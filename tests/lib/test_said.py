"""What several processes of a run say."""

from __future__ import annotations

import multiprocessing
import os

from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.lib.said import SaidOnce


def test_of_several_processes_one_says_it() -> None:
    context = multiprocessing.get_context("fork")
    with SaidOnce() as once, context.Pool(4, initializer=_use, initargs=(once,)) as pool:
        said = pool.map(_says, [f"loading: done in {n / 10} s" for n in range(40)], chunksize=10)
    by_process: dict[int, list[bool]] = {}
    for pid, first in said:
        by_process.setdefault(pid, []).append(first)
    # Each process says it some times; the one that says it most often is the last to be shown.
    assert sum(first for _, first in said) == max(len(lines) for lines in by_process.values())


_once: SaidOnce


def _use(once: SaidOnce) -> None:
    global _once
    _once = once


def _says(line: str) -> tuple[int, bool]:
    return os.getpid(), _once.is_first(line)


def test_lines_differ_by_more_than_their_seconds() -> None:
    lines = ["PASS a 1.0 s", "PASS b 1.0 s", "machine 1", "machine 2"]
    with SaidOnce() as once:
        assert [once.is_first(line) for line in lines] == [True] * 4


def test_what_one_process_says_twice_is_shown_twice() -> None:
    with SaidOnce() as once:
        assert [once.is_first("again 1 s"), once.is_first("again 2 s")] == [True, True]


def test_what_happens_beside_is_said_once_too() -> None:
    progress = Progress()
    with progress.shared():
        assert progress.once
        assert progress.parallel().once is progress.once
    assert progress.once is None
