"""Entering a context in the background, before anybody needs it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Early(Generic[T]):
    """Enters a context in a thread; whoever comes for it waits for that.

    A context manager itself: at its end the other context has been left, whether anybody came.

    :param at_once: if not, the context is entered when somebody comes for it
    """

    def __init__(self, context: AbstractContextManager[T], *, at_once: bool = True) -> None:
        self._context = context
        self._stack = ExitStack()
        self._value: T | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._enter) if at_once else None

    def __enter__(self) -> Self:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread:
            self._thread.join()
        self._stack.close()

    def _enter(self) -> None:
        try:
            self._value = self._stack.enter_context(self._context)
        except BaseException as e:
            self._failure = e

    @contextmanager
    def come(self) -> Iterator[T]:
        """The context's value; the context is left at the end of this one.

        :raises BaseException: what entering the context raised
        """
        if self._thread is None:
            with self._context as value:
                yield value
            return
        self._thread.join()
        if self._failure:
            raise self._failure
        with self._stack.pop_all():
            assert self._value is not None
            yield self._value
