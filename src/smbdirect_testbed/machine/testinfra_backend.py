"""A host as pytest-testinfra sees it."""

from __future__ import annotations

from typing import Any

import testinfra.host
from testinfra.backend.base import BaseBackend
from testinfra.backend.base import CommandResult as TestinfraResult

from smbdirect_testbed.machine.host import Host


def testinfra_host(host: Host) -> testinfra.host.Host:
    """A host for pytest-testinfra."""
    return testinfra.host.Host(_Backend(host))


class _Backend(BaseBackend):  # type: ignore[misc]
    """Carries pytest-testinfra's shell lines into a host."""

    NAME = "smbdirect-testbed"

    def __init__(self, host: Host) -> None:
        super().__init__(host.name)
        self._host = host

    def run(self, command: str, *args: str, **kwargs: Any) -> TestinfraResult:
        line = self.get_command(command, *args)
        done = self._host.run(["sh", "-c", line], check=False, timeout=120)
        return self.result(done.status, line, done.stdout, done.stderr)
