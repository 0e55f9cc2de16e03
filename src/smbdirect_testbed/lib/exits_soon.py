"""A deadline for an interrupted process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from smbdirect_testbed.lib.errors import ExitStatus

_SECONDS = 4.0


class ExitsSoon:
    """Ends this process some seconds after it was told to, unless the context ended before.

    What was provided is undone in good order as far as the time allows; the next command undoes the
    rest.
    """

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def begin(self, before: Callable[[], object]) -> None:
        """The time begins.

        :param before: done before the process ends
        """
        if self._timer is None:
            self._timer = threading.Timer(_SECONDS, self._exit, (before,))
            self._timer.daemon = True
            self._timer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer:
            self._timer.cancel()

    @staticmethod
    def _exit(before: Callable[[], object]) -> None:
        try:
            before()
        finally:
            os._exit(ExitStatus.INTERRUPTED)
