"""Entering a context in the background, before its value is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Generic, Self, TypeVar

from smbdirect_testbed.lib.simultaneous import Entering

T = TypeVar("T")


class Background(Generic[T]):
    """Enters a context in a thread; a caller that needs its value waits for the thread.

    It is a context manager itself. At its end the other context has been left, used or not.
    An interrupt of the waiting caller is passed on to the thread::

        with Background(provided(spec)) as background:
            prepare_something_else()
            with background.use() as environment:
                run(environment)

    :param at_once: if false, the context is entered when its value is first needed
    """

    def __init__(self, context: AbstractContextManager[T], *, at_once: bool = True) -> None:
        self._context = context
        self._entering = Entering(context) if at_once else None
        self._taken = False

    def __enter__(self) -> Self:
        if self._entering:
            self._entering.launch()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._entering:
            self._wait(self._entering)
            if self._entering.entered and not self._taken:
                self._context.__exit__(None, None, None)

    def done(self) -> T | None:
        """The context's value if it has been entered by now."""
        return self._entering.outcome() if self._entering and self._entering.entered else None

    def value(self) -> T:
        """The context's value; the context is left when this one is.

        :raises BaseException: what entering the context raised
        """
        assert self._entering
        self._wait(self._entering)
        return self._entering.outcome()

    @contextmanager
    def use(self) -> Iterator[T]:
        """The context's value; the context is left at the end of this one.

        :raises BaseException: what entering the context raised
        """
        if self._entering is None:
            with self._context as value:
                yield value
            return
        value = self.value()
        with ExitStack() as stack:
            stack.push(self._context)
            self._taken = True
            yield value

    def _wait(self, entering: Entering[T]) -> None:
        try:
            entering.wait()
        except KeyboardInterrupt:
            entering.interrupt()
            raise
