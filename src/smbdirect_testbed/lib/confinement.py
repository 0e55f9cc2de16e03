"""Programs that are confined to their own files, for any user, and without a privilege.

A kernel under test that runs as a program can do all that its user can. Namespaces would keep it
from that, and containers do not permit to make any by default. Three things need no permission:
Landlock (which files), a seccomp filter (no sockets, no keys, no namespaces), and giving up the
capabilities. They hold for the thread that asks for them and for all that it starts, so a program
is started by a thread of its own: nothing has to be executed in between, which would take time.

Sources: landlock(7), the kernel's Documentation/userspace-api/landlock.rst and seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import stat
import struct
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from pathlib import Path
from typing import IO, NamedTuple

from smbdirect_testbed.lib.errors import ProvisionError

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_CAPSET, _SECCOMP = 126, 317
_SET_MODE_FILTER, _SPEC_ALLOW = 1, 4
_PR_SET_SECUREBITS, _NOROOT = 28, 0b11
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}
"""All rights to files, by the version of Landlock that they came with."""
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_SCOPES = 3
"""No abstract Unix sockets and no signals to processes outside; of version 6."""

_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_X86_64, _X32 = 0xC000003E, 0x40000000
_LOAD, _JEQ, _JGE, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NR, _ARCH = 0, 4


def _argument(number: int) -> int:
    """Where an argument of a system call is, its lower half first."""
    return 16 + 8 * number


_AF_UNIX, _AF_INET, _STREAM, _TYPES = 1, 2, 1, 0xF
_SOCKET, _CONNECT, _SENDTO, _SENDMSG, _SENDMMSG = 41, 42, 44, 46, 307
_NEVER = {
    "ptrace": 101,
    "mount": 165,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "unshare": 272,
    "perf_event_open": 298,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "pidfd_getfd": 438,
}
"""What no confined program needs: numbers of x86_64."""


class Network(Enum):
    """What a program may do with sockets."""

    NONE = "make none"
    ANSWER = "answer those who connect to it"


class Capability(IntEnum):
    """Capabilities that a program may keep, if it has them: numbers of capabilities(7)."""

    SETPCAP = 8
    SYS_CHROOT = 18


@dataclass(frozen=True)
class Confinement:
    """What a program may do.

    :param reads: files and directories that it may read and execute
    :param writes: files and directories in which it may do all that its user may
    :param ptrace: let it trace processes that it started
    :param keeps: capabilities that it needs to give up more
    """

    reads: tuple[Path, ...]
    writes: tuple[Path, ...]
    network: Network = Network.NONE
    ptrace: bool = False
    keeps: tuple[Capability, ...] = ()


@functools.cache
def landlock_version() -> int:
    """The version of Landlock; 0 if the kernel, or what this runs in, does not permit it."""
    if platform.machine() != "x86_64":
        return 0
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, 0, _RULESET_VERSION)))


def start_confined(
    argv: Sequence[str],
    confinement: Confinement,
    *,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, confined, with nothing to read.

    Without Landlock (see :func:`landlock_version`) it can still reach its user's files.

    :param env: all variables of the program; None for this process's
    :raises FileNotFoundError: there is no such program
    :raises ProvisionError: the kernel refused
    """
    started: list[subprocess.Popen[bytes] | BaseException] = []

    def start() -> None:
        try:
            _confine_this_thread(confinement)
            started.append(
                subprocess.Popen(
                    argv,
                    stdin=nothing,
                    stdout=stdout,
                    stderr=stderr,
                    env=env,
                    cwd=cwd,
                    pass_fds=pass_fds,
                    start_new_session=True,
                )
            )
        except BaseException as e:
            started.append(e)

    with Path(os.devnull).open("rb") as nothing:
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    if isinstance(result := started[0], BaseException):
        raise result
    return result


def _confine_this_thread(confinement: Confinement) -> None:
    """Give up for good what is not permitted; other threads of the process keep it."""
    _call(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    if version := landlock_version():
        _restrict_files(confinement, version)
    _give_up_capabilities(confinement)
    _filter_calls(confinement)


def _give_up_capabilities(confinement: Confinement) -> None:
    """Without them root is the owner of its files and no more."""
    kept = 0
    if os.geteuid() == 0:
        kept = sum(1 << capability for capability in confinement.keeps)
        # Or else each exec gives them to root, and is undone since there are no new privileges. The
        # kernel then clears the personality, for which User Mode Linux executes itself again.
        if not kept and _libc().prctl(_PR_SET_SECUREBITS, _NOROOT, 0, 0, 0) < 0:
            # Not permitted here: it keeps what it has, within what Landlock leaves it.
            return
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    capabilities = struct.pack("III12x", kept, kept, 0)
    _call(_libc().syscall(_CAPSET, header, capabilities), "giving up capabilities")


def _restrict_files(confinement: Confinement, version: int) -> None:
    rights = next(r for since, r in reversed(_RIGHTS.items()) if version >= since)
    attributes = struct.pack("Q", rights)
    if version >= 6:
        attributes = struct.pack("QQQ", rights, 0, _SCOPES)
    ruleset = _libc().syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    _call(ruleset, "making a Landlock ruleset")
    try:
        for path in confinement.reads:
            _allow(ruleset, path, _READ)
        for path in confinement.writes:
            _allow(ruleset, path, rights)
        _call(_libc().syscall(_RESTRICT_SELF, ruleset, 0), "Landlock")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            rights &= _OF_A_FILE
        rule = struct.pack("=Qi", rights, opened)
        added = _libc().syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
        _call(added, f"permitting {path}")
    finally:
        os.close(opened)


def _filter_calls(confinement: Confinement) -> None:
    refused = dict(_NEVER)
    if confinement.ptrace:
        del refused["ptrace"]
    answers = confinement.network is Network.ANSWER
    # Not to whom it likes: an address is no part of an answer.
    numbers = [*refused.values(), *((_CONNECT, _SENDMMSG) if answers else (_SOCKET,))]
    program = _program(numbers, _ANSWERS if answers else ())
    code = ctypes.create_string_buffer(program, len(program))
    filter = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    # SPEC_ALLOW: a filter is no reason to make the program slower in other ways.
    done = _libc().syscall(_SECCOMP, _SET_MODE_FILTER, _SPEC_ALLOW, filter)
    _call(done, "filtering system calls")


class _Step(NamedTuple):
    """One instruction of a filter.

    :param then: where to go on if a comparison holds: a label, or the next step
    :param otherwise: where to go on if it does not
    :param label: its own
    """

    code: int
    value: int
    then: str = ""
    otherwise: str = ""
    label: str = ""


# Connections of TCP can come in. No other socket of a network can be made. A message has no address
# and no flags: one of these would begin a connection.
_ANSWERS = (
    _Step(_JEQ, _SOCKET, "", "no socket"),
    _Step(_LOAD, _argument(0)),
    _Step(_JEQ, _AF_UNIX, "allow"),
    _Step(_JEQ, _AF_INET, "", "refuse"),
    _Step(_LOAD, _argument(1)),
    _Step(_AND, _TYPES),
    _Step(_JEQ, _STREAM, "allow", "refuse"),
    _Step(_JEQ, _SENDMSG, "", "no sendmsg", "no socket"),
    _Step(_LOAD, _argument(2)),
    _Step(_JEQ, 0, "allow", "refuse"),
    _Step(_JEQ, _SENDTO, "", "allow", "no sendmsg"),
    _Step(_LOAD, _argument(4)),
    _Step(_JEQ, 0, "", "refuse"),
    _Step(_LOAD, _argument(4) + 4),
    _Step(_JEQ, 0, "", "refuse"),
)


def _program(refused: Sequence[int], more: Sequence[_Step]) -> bytes:
    """The filter, which refuses system calls by number, and those of other numberings.

    :param more: what looks further at those that are left
    """
    steps = [
        _Step(_LOAD, _ARCH),
        _Step(_JEQ, _X86_64, "", "refuse"),
        _Step(_LOAD, _NR),
        _Step(_JGE, _X32, "refuse"),
        *(_Step(_JEQ, number, "refuse") for number in refused),
        *more,
        _Step(_RETURN, _ALLOW, label="allow"),
        _Step(_RETURN, _REFUSE, label="refuse"),
    ]
    labels = {step.label: index for index, step in enumerate(steps)}

    def distance(label: str, index: int) -> int:
        return labels[label] - index - 1 if label else 0

    return b"".join(
        struct.pack(
            "HBBI",
            step.code,
            distance(step.then, index),
            distance(step.otherwise, index),
            step.value,
        )
        for index, step in enumerate(steps)
    )


def _call(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise ProvisionError(f"a program cannot be confined: {what}: {os.strerror(number)}")


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
