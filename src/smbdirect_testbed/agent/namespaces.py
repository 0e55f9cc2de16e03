"""Threads that have entered the namespaces of other processes.

A program that such a thread starts runs there. nsenter would have to be started first, which takes
longer than most commands.
"""

from __future__ import annotations

import _thread
import os
from _queue import SimpleQueue

from smbdirect_testbed.agent import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")
    _Work = tuple[Callable[[], Any], SimpleQueue[tuple[Any, Exception | None]]]

_NAMESPACES = (
    ("net", kernel.CLONE_NEWNET),
    ("uts", kernel.CLONE_NEWUTS),
    ("mnt", kernel.CLONE_NEWNS),
)


class Namespaces:
    """A thread for each process whose namespaces were asked for.

    They keep these namespaces alive.
    """

    def __init__(self) -> None:
        self._works: dict[int, SimpleQueue[_Work | None]] = {}
        self._entering = _thread.allocate_lock()

    def enter(self, pid: int) -> SimpleQueue[_Work | None]:
        """Have a thread in the namespaces of a process.

        :returns: takes what it is to do
        :raises OSError: they cannot be entered
        """
        with self._entering:
            if pid not in self._works:
                self._works[pid] = _entered(pid)
            return self._works[pid]

    def call(self, pid: int, do: Callable[[], T]) -> T:
        """Do something short in the namespaces of a process; in those of this one for 0.

        :raises OSError: they cannot be entered
        :raises Exception: what it raised
        """
        (result,) = self.call_all({pid: do}).values()
        return result

    def call_all(self, does: dict[int, Callable[[], T]]) -> dict[int, T]:
        """Do something at the same time in the namespaces of several processes; see :meth:`call`.

        What was done in one of them is done, whatever is raised in another.
        """
        pending = {}
        for pid, do in does.items():
            if pid:
                done: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
                self.enter(pid).put((do, done))
                pending[pid] = done
        outcomes = {0: _tried(does[0])} if 0 in does else {}
        outcomes |= {pid: done.get() for pid, done in pending.items()}
        return {pid: _result(outcome) for pid, outcome in outcomes.items()}

    def leave(self) -> None:
        """Let go of all namespaces."""
        with self._entering:
            for works in self._works.values():
                works.put(None)
            self._works.clear()


def _entered(pid: int) -> SimpleQueue[_Work | None]:
    works: SimpleQueue[_Work | None] = SimpleQueue()
    done: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
    _thread.start_new_thread(_serve, (pid, works, done))
    _result(done.get())
    return works


def _serve(
    pid: int,
    works: SimpleQueue[_Work | None],
    entered: SimpleQueue[tuple[Any, Exception | None]],
) -> None:
    try:
        # Otherwise it shares root and working directory with the other threads, and cannot enter.
        kernel.unshare(kernel.CLONE_FS)
        for name, kind in _NAMESPACES:
            descriptor = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)
            try:
                kernel.setns(descriptor, kind)
            finally:
                os.close(descriptor)
    except Exception as e:
        entered.put((None, e))
        return
    entered.put((None, None))
    while work := works.get():
        do, done = work
        done.put(_tried(do))


def _tried(do: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return do(), None
    except Exception as e:
        return None, e


def _result(outcome: tuple[Any, Exception | None]) -> Any:
    result, error = outcome
    if error:
        raise error
    return result
