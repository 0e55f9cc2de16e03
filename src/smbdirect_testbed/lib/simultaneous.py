"""Starting several things at the same time: machines wait more than they compute."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Generic, TypeVar

from smbdirect_testbed.lib import cancel
from smbdirect_testbed.lib.cancel import Cancel

T = TypeVar("T")

_PATIENCE = 2.0
"""Seconds for a thread to begin."""


def enter_together(
    stack: ExitStack, contexts: Mapping[str, AbstractContextManager[T]]
) -> dict[str, T]:
    """Enter contexts, each in a thread of its own; the stack leaves all that were entered.

    If some contexts raise, the first one's exception is raised after all others are done. Ctrl-C
    interrupts all of them.
    """
    if len(contexts) == 1:
        return {name: stack.enter_context(context) for name, context in contexts.items()}
    entering = {name: Entering(context) for name, context in contexts.items()}
    interrupted = False
    while True:
        try:
            for thread in entering.values():
                if interrupted:
                    thread.interrupt()
                else:
                    thread.launch()
            for thread in entering.values():
                if thread.runs():
                    thread.wait()
            break
        except KeyboardInterrupt:
            # Another Ctrl-C comes here again: no thread is left half way.
            interrupted = True
    for thread in entering.values():
        if thread.entered:
            stack.push(thread.context)
    if interrupted:
        raise KeyboardInterrupt
    return {name: thread.outcome() for name, thread in entering.items()}


class Entering(threading.Thread, Generic[T]):
    """A context that is being entered."""

    def __init__(self, context: AbstractContextManager[T]) -> None:
        super().__init__()
        self.context = context
        self.entered = False
        self._launched = False
        self._began = threading.Event()
        self._cancel = Cancel()
        self._value: T | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._began.set()
            with self._cancel.applied():
                self._value = self.context.__enter__()
                self.entered = True
        except BaseException as e:
            self._error = e

    def launch(self) -> None:
        """Start, unless that was tried before."""
        if not self._launched:
            self._launched = True
            self.start()

    def runs(self) -> bool:
        """Whether it runs or ran. A thread that was interrupted at its launch may begin late."""
        return self._launched and self._began.wait(_PATIENCE)

    def wait(self) -> None:
        """Wait until it is done.

        :raises KeyboardInterrupt: Ctrl-C, or what this thread does was called off
        """
        if not cancel.applies():
            self.join()
        while self.is_alive():
            self.join(cancel.INTERVAL)
            cancel.point()

    def interrupt(self) -> None:
        """Have it raise KeyboardInterrupt the next time that it waits; only once."""
        self._cancel.request()

    def outcome(self) -> T:
        """The context's value; raises what the context raised."""
        if self._error:
            raise self._error
        return self._value  # type: ignore[return-value]
