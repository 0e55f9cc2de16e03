"""Commands in a machine, as ssh would run them, without an ssh for each.

A command's input and output are files in memory, so processes that it leaves in the background do
not delay its end. It runs in a session of its own. At its deadline all processes that inherited its
environment are killed, also in other sessions.
"""

from __future__ import annotations

import _thread
import os
import time

from smbdirect_testbed.agent import kernel
from smbdirect_testbed.agent.cheap_imports import partial, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from smbdirect_testbed.agent.namespaces import Namespaces

    Answer = Callable[[int, dict[str, Any]], None]
    """Takes a request's number and the answer to it."""

_TAG = "SMBDIRECT_TESTBED_COMMAND"
_LARGE = 16 << 10
"""Bytes of output from which on a file carries it, which is faster than a serial port."""
_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
"""None of them is ignored by a command because Python, or a shell before it, ignores it."""
_PASSES = 20
_spawning = _thread.allocate_lock()
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {
    "HOME": "/root",
    "LOGNAME": "root",
    "PATH": PATH,
    "SHELL": "/bin/bash",
    "USER": "root",
}


class _Running:
    """A command that runs.

    :param number: of the request
    :param deadline: monotonic time
    """

    def __init__(
        self, number: int, pid: int, out: int, err: int, deadline: float, outputs: str
    ) -> None:
        self.number = number
        self.pid = pid
        self.out = out
        self.err = err
        self.deadline = deadline
        self.outputs = outputs
        self.expired = False


class Commands:
    """Starts commands, and reports how they ended."""

    def __init__(self, answer: Answer, namespaces: Namespaces) -> None:
        self._answer = answer
        self._namespaces = namespaces
        self._running: dict[int, _Running] = {}

    def start(
        self,
        number: int,
        argv: list[str],
        timeout: float,
        input: str | None = None,
        outputs: str = "",
        namespaces_of: int = 0,
    ) -> int | None:
        """Start a command; it is answered when it has ended.

        :param timeout: seconds after which it is killed with all that it started
        :param input: its standard input, a byte in each character
        :param outputs: the directory for much output
        :param namespaces_of: the process whose namespaces it runs in; 0 for this one's
        :returns: a descriptor that is readable when the command has ended; None if it has already
        """
        if namespaces_of:
            self._namespaces.enter(namespaces_of)
        stdin = _input(input)
        out, err = os.memfd_create("out"), os.memfd_create("err")
        try:
            files = (stdin, out, err)
            pid = self._namespaces.call(namespaces_of, partial(spawn, argv, files, _tag(number)))
        except OSError as e:
            # The statuses and words of a shell.
            missing = isinstance(e, FileNotFoundError)
            text = f"{argv[0]}: {'command not found' if missing else e.strerror}\n"
            self._answer(number, {"status": 127 if missing else 126, "out": "", "err": text})
            os.close(out)
            os.close(err)
            return None
        finally:
            os.close(stdin)
        descriptor = os.pidfd_open(pid)
        deadline = time.monotonic() + timeout
        self._running[descriptor] = _Running(number, pid, out, err, deadline, outputs)
        return descriptor

    def finish(self, descriptor: int) -> None:
        """Answer for the command of a descriptor, which has become readable."""
        command = self._running.pop(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(command.pid, 0)
        answer: dict[str, Any] = {
            "status": None if command.expired else os.waitstatus_to_exitcode(status)
        }
        for name, file in (("out", command.out), ("err", command.err)):
            answer |= _output(name, file, f"{command.outputs}/{command.number}")
        self._answer(command.number, answer)

    def expire(self) -> float | None:
        """Kill what is past its deadline; return the seconds to the next deadline, if any."""
        now = time.monotonic()
        for command in self._running.values():
            if not command.expired and command.deadline <= now:
                command.expired = True
                _kill(command)
        left = [c.deadline - now for c in self._running.values() if not c.expired]
        return max(0.0, min(left)) if left else None


class Call:
    """A short command that was started.

    :param namespaces_of: the process whose namespaces it runs in; 0 for this one's
    :raises OSError: it cannot be started
    """

    def __init__(self, argv: list[str], namespaces: Namespaces, namespaces_of: int) -> None:
        self._argv = argv
        self._said = os.memfd_create("said")
        stdin = _input(None)
        try:
            files = (stdin, self._said, self._said)
            self._pid = namespaces.call(namespaces_of, partial(spawn, argv, files))
        finally:
            os.close(stdin)

    def finish(self) -> str:
        """Wait for its end; returns what is wrong if it failed."""
        _, status = os.waitpid(self._pid, 0)
        text = os.pread(self._said, _LARGE, 0).decode(errors="replace").strip()
        os.close(self._said)
        if not status:
            return ""
        # Its import takes long, and few commands fail.
        from shlex import join

        return f"{join(self._argv)}: {text}"


def spawn(argv: list[str], files: tuple[int, int, int], tag: str = "") -> int:
    """Start a process that the kernel may end when it is out of memory, and protect this one.

    A scenario that takes all memory should lose its own processes, and not the agent, on which the
    testbed waits for answers.

    :param files: its standard input, output and error
    :param tag: in its environment and that of all that it starts
    """
    with _spawning:
        # What is started inherits it.
        _write_protection(os.getpid(), "0")
        try:
            return os.posix_spawnp(
                argv[0],
                argv,
                {**_ENVIRONMENT, _TAG: tag},
                file_actions=[(os.POSIX_SPAWN_DUP2, d, n) for n, d in enumerate(files)],
                setsid=True,
                setsigdef=_SIGNALS,
            )
        finally:
            protect(os.getpid())


def protect(pid: int) -> None:
    """Have the kernel end other processes than this one when it is out of memory."""
    _write_protection(pid, "-1000")


def _write_protection(pid: int, value: str) -> None:
    try:
        kernel.write(f"/proc/{pid}/oom_score_adj", value)
    except OSError:
        # Not permitted on a computer that others use, too.
        return


def _input(text: str | None) -> int:
    if text is None:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    file = os.memfd_create("input")
    data = text.encode("latin-1")
    while data:
        data = data[os.write(file, data) :]
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _output(name: str, file: int, path: str) -> dict[str, str]:
    size = os.fstat(file).st_size
    data = os.pread(file, size, 0)
    os.close(file)
    if size < _LARGE or not path.startswith("/"):
        return {name: data.decode("latin-1")}
    path = f"{path}.{name}"
    with open(path, "wb") as kept:
        kept.write(data)
        kept.flush()
        # Otherwise the other side of a shared directory may see it later than this answer.
        os.fsync(kept.fileno())
    return {f"{name}_file": os.path.basename(path)}


def _tag(number: int) -> str:
    return f"{os.getpid()}.{number}"


def _kill(command: _Running) -> None:
    tag = f"{_TAG}={_tag(command.number)}".encode()
    # Again until none is left: a killed process may just have started another.
    for _ in range(_PASSES):
        found = [
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _has(pid, tag)
        ]
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not found:
            break
        time.sleep(0.005)
    if not os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        os.kill(command.pid, signal.SIGKILL)


def _has(pid: int, tag: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return tag in file.read().split(b"\0")
    except OSError:
        return False
