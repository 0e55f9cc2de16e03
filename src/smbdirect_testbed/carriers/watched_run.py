"""Running a command while watching the machine that it depends on."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from smbdirect_testbed.lib import cancel
from smbdirect_testbed.lib.errors import CommandFailed
from smbdirect_testbed.lib.process import CommandResult, kill_group

_INTERVAL = 0.5


def run_watched(
    argv: Sequence[str],
    *,
    input: str | bytes | None,
    timeout: float,
    watch: Callable[[], None],
) -> CommandResult:
    """Run a command to its end, as :func:`~smbdirect_testbed.lib.process.run` does without check.

    Input and output are files. A pipe could be kept open by an ssh in the background, which
    outlives the command for as long as the machine does not answer.

    :param timeout: seconds until it is stopped
    :param watch: called twice a second; when it raises, the command is stopped
    :raises CommandFailed: the deadline passed
    :raises KeyboardInterrupt: what this thread does was called off, see
        :mod:`smbdirect_testbed.lib.cancel`
    """
    with _input(input) as stdin, _scratch() as stdout, _scratch() as stderr:
        proc = subprocess.Popen(
            argv, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )
        try:
            ended = _wait(proc, timeout, watch)
        finally:
            # Also after its end, for processes that it left in the background.
            kill_group(proc)
            proc.wait()
        out, err = _text(stdout), _text(stderr)
        if not ended:
            raise CommandFailed(argv, None, out + err)
        return CommandResult(tuple(argv), proc.returncode, out, err)


def _wait(proc: subprocess.Popen[bytes], timeout: float, watch: Callable[[], None]) -> bool:
    """Wait for a process to end; false if it does not end in time."""
    deadline = time.monotonic() + timeout
    descriptor = os.pidfd_open(proc.pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if poll.poll(max(0, min(_INTERVAL, left)) * 1000):
                return True
            cancel.point()
            watch()
            if left <= 0:
                return False
    finally:
        os.close(descriptor)


def _input(data: str | bytes | None) -> BinaryIO:
    if data is None:
        return Path(os.devnull).open("rb")
    file = _scratch()
    file.write(data.encode() if isinstance(data, str) else data)
    file.seek(0)
    return file


def _scratch() -> BinaryIO:
    return tempfile.TemporaryFile()


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
