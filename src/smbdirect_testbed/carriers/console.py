"""Following a machine's console while it grows."""

from __future__ import annotations

import threading
from pathlib import Path


class ConsoleReader:
    """Reads the new lines of a console file.

    Safe to use from several threads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._rest = b""
        self._lock = threading.Lock()

    def new_lines(self) -> list[str]:
        """The complete lines since the last call, without line ends."""
        with self._lock:
            try:
                with self.path.open("rb") as file:
                    file.seek(self._offset)
                    data = file.read()
            except FileNotFoundError:
                return []
            self._offset += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.rstrip(b"\r").decode(errors="replace") for line in lines]


def last_lines(path: Path, count: int = 20) -> str:
    """The end of a console file or a log, for an error's detail; empty if there is none."""
    try:
        lines = path.read_bytes().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(line.rstrip() for line in lines[-count:])
