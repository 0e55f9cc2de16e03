"""The logs of servers, divided at the borders between scenarios."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, BinaryIO

from smbdirect_testbed.lib.untrusted import Unsafe, UntrustedDirectory
from smbdirect_testbed.plugin.server_crashes import crashes

if TYPE_CHECKING:
    from smbdirect_testbed.smb.server import SmbServer


_LARGEST_PART = 1 << 20
"""Bytes of one log kept for one scenario: the last ones."""
_LARGEST_LOG = 256 << 20
"""Bytes of one log kept for a run: the last ones."""


class ServerLogs:
    """Keeps the servers' log lines for each scenario."""

    def __init__(self) -> None:
        self._ends: dict[Path, int] = {}
        self._servers: dict[Path, SmbServer] = {}

    def cut(self, servers: Iterable[SmbServer], directory: Path | None) -> list[str]:
        """Write the lines since the last cut, one file for each log.

        :param directory: where to; None forgets it
        :returns: what the logs say of crashes meanwhile
        """
        found = []
        for server in servers:
            self._servers[server.logs] = server
            for log, file in _opened(server.logs):
                begin, end = self._ends.get(log, 0), os.fstat(file.fileno()).st_size
                self._ends[log] = end
                if directory and end > begin:
                    directory.mkdir(parents=True, exist_ok=True)
                    file.seek(max(begin, end - _LARGEST_PART))
                    part = file.read(end - file.tell())
                    (directory / f"{server.kind}-{log.name}.log").write_bytes(part)
                    if crash := crashes(log.name, part.decode(errors="replace")):
                        found.append(crash)
        return found

    def keep(self, directory: Path) -> None:
        """Copy all logs of all servers seen to a directory each: ``smbd/``."""
        for server in self._servers.values():
            for log, file in _opened(server.logs):
                target = directory / server.kind / log.name
                target.parent.mkdir(parents=True, exist_ok=True)
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - _LARGEST_LOG))
                with target.open("wb") as kept:
                    shutil.copyfileobj(file, kept)


def _opened(logs: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """The logs in a directory of the machine's, which may hold links to files of this computer."""
    files = UntrustedDirectory(logs.parent)
    with suppress(Unsafe, FileNotFoundError):
        for name in files.names(logs.name):
            with suppress(Unsafe, FileNotFoundError), files.open(PurePath(logs.name, name)) as file:
                yield logs / name, file
