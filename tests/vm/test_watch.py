"""The loop of somebody who works on the driver, at a terminal: save, see, mend, Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.vm.conftest import Testbed

from smbdirect_testbed.driver.sources import resolve
from smbdirect_testbed.errors import ExitStatus
from smbdirect_testbed.image import provide_image
from smbdirect_testbed.progress import Progress
from smbdirect_testbed.runner import default_environment
from smbdirect_testbed.spec import DriverSpec

pytestmark = pytest.mark.vm

_WAITING = "waiting for a save; Ctrl-C ends"
_SECONDS = 170.0


@dataclass
class Terminal:
    """A program at a terminal of its own."""

    process: subprocess.Popen[bytes]
    master: int
    shown: str = ""

    def until(self, text: str) -> str:
        """Wait until the program shows a text; what it showed up to there since the last time."""
        deadline = time.monotonic() + _SECONDS
        while text not in self.shown:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self.master], [], [], left)[0]
            assert ready, f"{text!r} was not shown: {self.shown}"
            self.shown += os.read(self.master, 65536).decode(errors="replace")
        before, _, self.shown = self.shown.partition(text)
        print(before)
        return before

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
def _terminal(testbed: Testbed, *arguments: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "smbdirect_testbed", *arguments],
        cwd=testbed.directory,
        env=testbed.environment,
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
        process.wait()
        os.close(master)


def test_save_see_mend_and_leave(testbed: Testbed, tmp_path: Path) -> None:
    tree = tmp_path / "linux"
    progress = Progress(quiet=True)
    resolve(DriverSpec(), provide_image("trixie", progress), progress).write(tree)
    source = tree / "fs/smb/smbdirect/socket.c"
    good = source.read_text()
    results = testbed.directory / "results"

    what = (default_environment(), "--driver", str(tree), "-k", "loaded_from_our_build")
    with _terminal(testbed, "watch", *what) as terminal:
        assert "passed: 1 of 1" in terminal.until(_WAITING)

        source.write_text(good + "\nint broken(void)\n{\n\treturn undeclared;\n}\n")
        broken = terminal.until(_WAITING)
        assert f"saved: {source}" in broken
        assert f"fs/smb/smbdirect/socket.c:{len(good.splitlines()) + 4}:" in broken
        assert "undeclared" in broken
        assert "passed" not in broken
        assert len(broken.splitlines()) < 30

        # As editors do, by renaming.
        new = source.with_suffix(".new")
        new.write_text(good + "\n/* mended */\n")
        new.replace(source)
        assert "passed: 1 of 1" in terminal.until(_WAITING)

        source.write_text(good + "\n/* another thought */\n")
        terminal.until("loading the driver")
        terminal.press(b"\x03")
        assert terminal.end() == ExitStatus.INTERRUPTED
        assert "interrupted; nothing is left behind" in terminal.shown
        assert "Traceback" not in terminal.shown
    assert testbed.leftovers() == []
    assert len([run for run in results.iterdir() if not run.is_symlink()]) >= 3
