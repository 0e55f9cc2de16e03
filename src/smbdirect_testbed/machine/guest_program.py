"""Programs that scenarios run in the machines: a server, and clients that say what they saw."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.wait import wait_until
from smbdirect_testbed.machine.host import Host

_PYTHON = ["python3", "-I"]
_SHARED = "shared"
"""The directory, next to the program, of modules that programs have in common."""
_MODULE = paths.PACKAGE / "smbdirect.py"
"""The module for SMB-Direct sockets, which is not imported here: that would take its time."""


@dataclass(frozen=True)
class Program:
    """A Python program on a client and on a server, with the module for SMB-Direct sockets.

    Its clients print one line of JSON; its server prints a line with ``listening`` when it is.

    ::

        program = Program(Path("programs/socket_stream.py"), client, server)
        with program.serving(scenario_log / "server.log", "serve", program.address, 5480):
            program.do("call", program.address, 5480, "fork")

    :param source: of the program, on this computer; it needs no more than a plain Python
    """

    source: Path
    client: Host
    server: Host

    @property
    def address(self) -> str:
        """The server's IPv4 address on its link to the client."""
        return str(self.server.end_towards(self.client).ipv4.ip)

    def argv(self, host: Host, *arguments: object) -> list[str]:
        """The command that runs the program on a host; puts it there first."""
        shared = host.machine.shared
        modules = (self.source.parent / _SHARED).glob("*.py")
        for file in (self.source, *modules, _MODULE):
            shared.files.put(file, file.name)
        there = shared.path_there(shared.here / self.source.name)
        return [*_PYTHON, str(there), *map(str, arguments)]

    def do(self, *arguments: object, timeout: float = 90) -> dict[str, Any]:
        """Run a client to its end; return what it found out.

        :raises CommandFailed: it failed, or took longer than ``timeout`` seconds
        """
        done = self.client.run(self.argv(self.client, *arguments), timeout=timeout)
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    @contextmanager
    def serving(self, log: Path, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        """Run a server while the context lasts; begin when it listens.

        :raises ProvisionError: it ended at once, or does not listen
        """
        with self.server.background(self.argv(self.server, *arguments), log) as running:

            def listening() -> bool:
                if running.poll() is not None:
                    raise ProvisionError(f"{self.source.name} ended", detail=log.read_text())
                return "listening" in log.read_text()

            wait_until(listening, f"{self.source.name} to listen", timeout=30)
            yield running
