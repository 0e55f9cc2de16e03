"""Running commands on this computer: argv lists, deadlines, logs, and no orphans."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smbdirect_testbed.lib import cancel
from smbdirect_testbed.lib.confinement import Confinement, start_confined
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError


@dataclass(frozen=True)
class CommandResult:
    """What a command printed and how it ended.

    ::

        done = client.run(["smbclient", "--list", str(server.ipv4), "--no-pass"], check=False)
        assert done.ok or "NT_STATUS_ACCESS_DENIED" in done.output

    :param argv: the command as it was run
    :param status: exit status; negative is the number of the signal that ended it
    """

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        """Whether the exit status is 0."""
        return self.status == 0

    @property
    def output(self) -> str:
        """Standard output, then standard error."""
        return self.stdout + self.stderr

    def check(self) -> CommandResult:
        """Return self, or raise :class:`CommandFailed` when the status is not 0."""
        if not self.ok:
            raise CommandFailed(self.argv, self.status, self.output)
        return self


def run(
    argv: Sequence[str | Path],
    *,
    input: str | bytes | None = None,
    timeout: float | None = None,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    pass_fds: Sequence[int] = (),
    confinement: Confinement | None = None,
) -> CommandResult:
    """Run a command to its end and return what it printed.

    The command gets a process group of its own. The group is killed at the deadline and on any
    exception (also Ctrl-C), so no child survives the command.

    :param timeout: seconds until it is stopped; None for no deadline
    :param env: variables to add to the environment
    :param log: a file to append the command line and all of its output to; stdout and stderr of
        the result are then one text, in stdout
    :param pass_fds: file descriptors that it inherits
    :param confinement: all that it may do; without input
    :raises CommandFailed: status other than 0 (with ``check``), or the deadline passed
    :raises ProvisionError: the command does not exist
    :raises KeyboardInterrupt: what this thread does was called off, see :mod:`.cancel`
    """
    args = [os.fspath(a) for a in argv]
    data = input.encode() if isinstance(input, str) else input
    try:
        stderr = subprocess.STDOUT if log else subprocess.PIPE
        variables = {**os.environ, **env} if env else None
        if confinement:
            proc = start_confined(
                args,
                confinement,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=variables,
                cwd=cwd,
                pass_fds=pass_fds,
            )
        else:
            proc = subprocess.Popen(
                args,
                stdin=subprocess.PIPE if data is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=variables,
                cwd=cwd,
                start_new_session=True,
                pass_fds=pass_fds,
            )
    except FileNotFoundError as e:
        raise ProvisionError(
            f"cannot run {args[0]}: {e.filename} does not exist",
            hint="see smbdirect-testbed doctor",
        ) from e
    try:
        out, err = _communicate(proc, data, timeout)
    except subprocess.TimeoutExpired:
        kill_group(proc)
        out, err = proc.communicate()
        _append(log, args, out)
        raise CommandFailed(args, None, _text(out) + _text(err), log=log) from None
    except BaseException:
        kill_group(proc)
        proc.communicate()
        raise
    _append(log, args, out)
    result = CommandResult(tuple(args), proc.returncode, _text(out), _text(err))
    if check and not result.ok:
        raise CommandFailed(args, proc.returncode, result.output, log=log)
    return result


def kill_group(proc: subprocess.Popen[bytes]) -> None:
    """Kill a process started with ``start_new_session`` together with its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(proc.pid, signal.SIGKILL)


def _communicate(
    proc: subprocess.Popen[bytes], data: bytes | None, timeout: float | None
) -> tuple[bytes, bytes]:
    """What a process prints until its end; looks meanwhile whether it is called off."""
    if not cancel.applies():
        return proc.communicate(data, timeout)
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = cancel.INTERVAL
        if deadline is not None:
            left = max(0.0, min(left, deadline - time.monotonic()))
        try:
            return proc.communicate(data, left)
        except subprocess.TimeoutExpired:
            cancel.point()
            if deadline is not None and time.monotonic() >= deadline:
                raise
        data = None  # it has it, or will get it


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace")


def _append(log: Path | None, argv: Sequence[str], out: bytes | None) -> None:
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as f:
            f.write(f"$ {shlex.join(argv)}\n".encode())
            f.write(out or b"")
