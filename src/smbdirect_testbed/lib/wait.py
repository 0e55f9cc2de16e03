"""Waiting for a condition with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from smbdirect_testbed.lib import cancel
from smbdirect_testbed.lib.errors import ProvisionError

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T | None], what: str, *, timeout: float, interval: float = 0.05
) -> T:
    """Poll ``condition`` until it returns something true, and return that::

        log = scenario_log / "server.log"
        wait_until(lambda: "listening" in log.read_text(), "the server to listen", timeout=20)

    :param what: the condition in words, for the error: "smbd to listen on port 445"
    :param timeout: seconds until giving up
    :param interval: seconds between two polls
    :raises ProvisionError: the deadline passed
    :raises KeyboardInterrupt: what this thread does was called off, see :mod:`.cancel`
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise ProvisionError(f"timed out after {timeout:g} s waiting for {what}")
        cancel.sleep(interval)
