"""What Python's own library has no functions for: mounts, namespaces, random numbers."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWNET = 0x40000000
MS_REC_PRIVATE = 0x4000 | 0x40000
MS_NOATIME = 0x400
_OPEN_TREE, _MOVE_MOUNT = 428, 429
"""Numbers of system calls, the same on every architecture."""
_FINIT_MODULE = {"x86_64": 313, "aarch64": 273}
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD = -100
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_DEADLINE = 30.0
"""Seconds that the kernel gets for anything asynchronous."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(status: int) -> int:
    if status < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return status


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags))


def setns(descriptor: int, kind: int) -> None:
    """setns(2)."""
    _check(_libc.setns(descriptor, kind))


def mount(source: str, target: str, kind: str, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    options = data.encode() if data else None
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), flags, options))


def umount(target: str) -> None:
    """umount(2), a moment later when someone is looking for a file there just now."""

    def done() -> bool:
        status = _libc.umount2(target.encode(), 0)
        if status < 0 and ctypes.get_errno() == errno.EBUSY:
            return False
        _check(status)
        return True

    wait(done, f"{target} not to be in use")


def open_tree(target: str) -> int:
    """A copy of a mount that is nowhere yet."""
    return _check(int(_libc.syscall(_OPEN_TREE, _AT_FDCWD, target.encode(), _OPEN_TREE_CLONE)))


def place_tree(tree: int, target: str) -> None:
    """Mount what :func:`open_tree` returned."""
    to = (_AT_FDCWD, target.encode())
    _check(int(_libc.syscall(_MOVE_MOUNT, tree, b"", *to, _MOVE_MOUNT_F_EMPTY_PATH)))


def load_module(path: str) -> None:
    """finit_module(2), without parameters."""
    with open(path, "rb") as file:
        number = _FINIT_MODULE[os.uname().machine]
        _check(int(_libc.syscall(number, file.fileno(), b"", 0)))


def reseed(entropy: bytes) -> None:
    """Mix random bytes into the kernel's generator and have it use them at once; random(4)."""
    with open("/dev/urandom", "wb", buffering=0) as device:
        header = struct.pack("ii", 8 * len(entropy), len(entropy))
        fcntl.ioctl(device, _RNDADDENTROPY, header + entropy)
        fcntl.ioctl(device, _RNDRESEEDCRNG)


def read(path: str) -> str:
    """The text of a small file."""
    with open(path) as file:
        return file.read()


def write(path: str, text: str) -> None:
    """Write a small file."""
    with open(path, "w") as file:
        file.write(text)


def write_sysctls(values: dict[str, str]) -> None:
    """Set kernel parameters, named by their paths below ``/proc/sys``."""
    for key, value in values.items():
        write(f"/proc/sys/{key}", value)


def wait(condition: Callable[[], bool], what: str) -> None:
    """Poll until a condition holds.

    :raises TimeoutError: it did not in time
    """
    deadline = time.monotonic() + _DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"timed out after {_DEADLINE:g} s waiting for {what}")
        time.sleep(0.005)


def in_mounts_of(pid: int, do: Callable[[], object]) -> None:
    """Call something in a process of its own in the mount namespace of another."""
    failed, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            setns(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), CLONE_NEWNS)
            do()
        except BaseException as e:
            os.write(tell, str(e).encode() or b"failed")
        finally:
            os._exit(0)
    os.close(tell)
    with os.fdopen(failed) as pipe:
        reason = pipe.read()
    os.waitpid(child, 0)
    if reason:
        raise OSError(f"in the mount namespace of process {pid}: {reason}")
