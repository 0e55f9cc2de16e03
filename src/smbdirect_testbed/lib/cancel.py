"""Calling off what a thread does: at the next moment at which it waits, it raises.

An exception thrown into another thread would come between any two instructions, also between
making something and noting that it was made. So a thread is asked, and those that wait look:
:func:`~smbdirect_testbed.lib.wait.wait_until`, :func:`smbdirect_testbed.lib.process.run` and
others, by :func:`point` or :func:`sleep`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from typing import TypeVar

T = TypeVar("T")

INTERVAL = 0.1
"""Seconds after which those that wait for something else look again."""


class Cancel:
    """What calls off the work of a thread, and of others that work for it::

    cancel = Cancel()
    with cancel.applied():  # in the thread
        wait_until(...)
    cancel.request()  # in another: wait_until raises KeyboardInterrupt
    """

    def __init__(self) -> None:
        self.requested = threading.Event()

    def request(self) -> None:
        """Have the work end: each of the threads raises once, and after that cleans up."""
        self.requested.set()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """What this thread does while the context lasts can be called off."""
        token = _current.set(_Applied(self))
        try:
            yield
        finally:
            _current.reset(token)


@dataclass
class _Applied:
    """What calls off one thread's work.

    :param raised: it was raised there
    """

    cancel: Cancel
    raised: bool = False

    def point(self) -> None:
        if self.cancel.requested.is_set() and not self.raised:
            self.raised = True
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        if self.raised:
            time.sleep(seconds)
        elif self.cancel.requested.wait(seconds):
            self.point()


_current: ContextVar[_Applied | None] = ContextVar("cancel", default=None)


def applies() -> bool:
    """Whether somebody may call off what this thread does."""
    return _current.get() is not None


def point() -> None:
    """Raise KeyboardInterrupt if what this thread does was called off; once."""
    if applied := _current.get():
        applied.point()


def sleep(seconds: float) -> None:
    """Sleep; raises KeyboardInterrupt as soon as what this thread does is called off; once."""
    if applied := _current.get():
        applied.sleep(seconds)
    else:
        time.sleep(seconds)


def carried(work: Callable[[], T]) -> Callable[[], T]:
    """The same work for another thread: what calls off this thread calls off that work, too."""
    applied = _current.get()
    context = copy_context()
    context.run(_current.set, applied and replace(applied))
    return lambda: context.run(work)
