"""Running a command while watching over the machine that it depends on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence

from smbdirect_testbed.errors import CommandFailed
from smbdirect_testbed.process import CommandResult, kill_group

_INTERVAL = 0.5


def run_watched(
    argv: Sequence[str],
    *,
    input: str | bytes | None,
    timeout: float,
    watch: Callable[[], None],
) -> CommandResult:
    """Run a command to its end, as :func:`smbdirect_testbed.process.run` does without ``check``.

    :param timeout: seconds until it is stopped
    :param watch: called twice a second; when it raises, the command is stopped
    :raises CommandFailed: the deadline passed
    """
    data: bytes | None = input.encode() if isinstance(input, str) else input
    proc = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE if data is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + timeout
    try:
        while True:
            left = deadline - time.monotonic()
            try:
                out, err = proc.communicate(data, timeout=max(0, min(_INTERVAL, left)))
                break
            except subprocess.TimeoutExpired:
                data = None  # It may be given once; the first call keeps what is left of it.
            watch()
            if left <= 0:
                kill_group(proc)
                out, err = proc.communicate()
                raise CommandFailed(argv, None, _text(out) + _text(err))
    except BaseException:
        kill_group(proc)
        proc.communicate()
        raise
    return CommandResult(tuple(argv), proc.returncode, _text(out), _text(err))


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
