"""A host as pytest-testinfra sees it.

This module knows nothing of hosts but a name and how to run a command, so that a host can import
it when somebody asks for testinfra.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import testinfra.host
from testinfra.backend.base import BaseBackend
from testinfra.backend.base import CommandResult as TestinfraResult

from smbdirect_testbed.lib.process import CommandResult

_TIMEOUT = 120.0
"""Seconds for one of testinfra's commands; the longest is the checksum of a large file."""


class Run(Protocol):
    """Runs a command in a host to its end, as ``Host.run`` does."""

    def __call__(
        self, command: Sequence[str], *, timeout: float = 60, check: bool = True
    ) -> CommandResult:
        """Run it; see ``Host.run``."""


def testinfra_host(name: str, run: Run) -> testinfra.host.Host:
    """A host for pytest-testinfra.

    :param name: of the host, for testinfra's messages
    :param run: runs a command in it
    """
    return testinfra.host.Host(_Backend(name, run))


class _Backend(BaseBackend):  # type: ignore[misc]
    """Carries pytest-testinfra's shell lines into a host.

    What a command prints arrives as text: bytes that are not UTF-8 are replaced.
    """

    NAME = "smbdirect-testbed"

    def __init__(self, name: str, run: Run) -> None:
        super().__init__(name)
        self._run = run

    def get_encoding(self) -> str:
        """The encoding of what ``run`` returns; testinfra would start a Python to ask for it."""
        return "UTF-8"

    def run(self, command: str, *args: str, **kwargs: Any) -> TestinfraResult:
        """Run a shell line; its failure is a result and no exception."""
        line = self.get_command(command, *args)
        done = self._run(["sh", "-c", line], check=False, timeout=_TIMEOUT)
        return self.result(done.status, self.encode(line), done.stdout, done.stderr)
