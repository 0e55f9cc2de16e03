"""A program at a terminal, as its user has it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 170.0


@dataclass
class Terminal:
    """A program at a terminal of its own."""

    process: subprocess.Popen[bytes]
    master: int
    shown: str = ""

    def until(self, text: str) -> str:
        """Wait until the program shows a text; what it showed up to there since the last time.

        :returns: without colours
        """
        deadline = time.monotonic() + _SECONDS
        while text not in self.shown:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self.master], [], [], left)[0]
            assert ready, f"{text!r} was not shown: {self.shown}"
            self.shown += os.read(self.master, 65536).decode(errors="replace")
        before, _, self.shown = self.shown.partition(text)
        print(before)
        return re.sub(r"\x1b\[[0-9;]*m", "", before)

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        """The program's status; it has ended when nobody is left at the terminal."""
        while True:
            try:
                self.shown += os.read(self.master, 65536).decode(errors="replace")
            except OSError:
                return self.process.wait(timeout=_SECONDS)


@contextmanager
def command_at_terminal(
    *arguments: str, directory: Path, environment: Mapping[str, str]
) -> Iterator[Terminal]:
    """The command line, run in a directory, until the context ends."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "smbdirect_testbed", *arguments],
        cwd=directory,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
            os.close(master)
