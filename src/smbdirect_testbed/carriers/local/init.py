"""The first process of a machine of the carrier ``local``; run as a program of its own, by root.

It makes namespaces with an image's root file system, becomes process 1 there, reaps orphans, and
copies the kernel log from ``/dev/kmsg`` to the console file. Its end also ends all processes and
mounts of the machine. The process that was started ends when the machine is ready; on failure its
standard output has the reason. It imports nothing of this package.

Usage: init.py SETTINGS, a JSON object: image, scratch, shared, console, modules, root (an empty
directory), group (of the control group), network (own one: true), note (the file to be made that
tells which process it is), parent (the process that starts this one, whose end ends it).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_NEWNS, _NEWUTS, _NEWIPC = 0x00020000, 0x04000000, 0x08000000
_NEWPID, _NEWNET = 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_PIVOT_ROOT = 155
"""The number of the system call on x86_64."""

_HOST_NAME = "testbed"
_KMSG_RECORD = 8192
_libc = ctypes.CDLL(None, use_errno=True)


def _check(status: int, what: str) -> None:
    if status < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def _mount(
    source: str | Path, target: Path, kind: str, flags: int = 0, options: str | None = None
) -> None:
    target.mkdir(parents=True, exist_ok=True)
    data = options.encode() if options else None
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), flags, data)
    _check(_libc.mount(*arguments), f"mounting {kind} on {target}")


def _bind(source: str | Path, target: Path) -> None:
    _mount(source, target, "none", _MS_BIND | _MS_REC)


def _mount_file(kind: str, options: str, file: str, target: Path) -> None:
    """Mount a file by a loop device, which goes with the mount."""
    target.mkdir(parents=True, exist_ok=True)
    argv = ["mount", "-n", "-t", kind, "-o", f"loop,{options}", file, str(target)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"mounting {file}: {done.stderr.strip()}")


def _make_private() -> None:
    """Hide later mounts from the computer, even if this process is in a chroot."""
    here = os.open("/", os.O_PATH | os.O_DIRECTORY)
    _leave_chroot()
    _check(_libc.mount(b"none", b"/", b"none", _MS_REC | _MS_PRIVATE, None), "privacy of mounts")
    os.fchdir(here)
    os.chroot(".")


def _leave_chroot() -> None:
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    _check(_libc.setns(own, _NEWNS), "leaving the chroot")


def _make_root(settings: dict[str, Any]) -> Path:
    """Mount everything that the machine sees; return its root."""
    place = Path(settings["root"])
    _mount("testbed", place, "tmpfs", 0, "mode=755")
    lower, upper, work, root = (place / name for name in ("lower", "upper", "work", "new"))
    _mount_file("erofs", "ro", settings["image"], lower)
    for directory in (upper, work):
        directory.mkdir()
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    _mount("testbed", root, "overlay", 0, layers)

    _mount("proc", root / "proc", "proc")
    # The computer's: port counters of RDMA links are nowhere else.
    _bind("/sys", root / "sys")
    groups = place / "groups"
    _mount("testbed", groups, "cgroup2")
    (groups / settings["group"]).mkdir()
    _bind(groups / settings["group"], root / "sys/fs/cgroup")
    for kind, name in (("debugfs", "debug"), ("tracefs", "tracing")):
        with suppress(OSError):
            _mount(kind, root / "sys/kernel" / name, kind)
    # Not a copy of the computer's, which may be a container's: RDMA devices come and go.
    _mount("dev", root / "dev", "devtmpfs", _MS_NOSUID)
    _mount("devpts", root / "dev/pts", "devpts", 0, "newinstance,gid=5,mode=620,ptmxmode=666")
    _mount("shm", root / "dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
    _mount("run", root / "run", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    _mount("tmp", root / "tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
    for name in ("lock", "samba"):
        (root / "run" / name).mkdir()
    _mount_file("ext4", "noatime", settings["scratch"], root / "srv")
    _bind(settings["shared"], root / "testbed")
    _bind(settings["modules"], root / "usr/lib/modules" / os.uname().release)
    return root


def _enter(root: Path) -> None:
    """Make a directory the root of the mount namespace."""
    new = os.open(root, os.O_PATH | os.O_DIRECTORY)
    _leave_chroot()
    os.fchdir(new)
    _check(int(_libc.syscall(_PIVOT_ROOT, b".", b".")), "changing the root")
    _check(_libc.umount2(b".", _MNT_DETACH), "leaving this computer's files")
    os.chdir("/")


def _network_up() -> None:
    subprocess.run(["/usr/bin/ip", "link", "set", "lo", "up"], check=True, capture_output=True)


def _reap(*_: object) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def record_lines(record: str) -> str:
    """A record of ``/dev/kmsg`` as a serial console would show it.

    Source: the kernel's Documentation/ABI/testing/dev-kmsg.
    """
    head, _, rest = record.partition(";")
    microseconds = int(head.split(",")[2])
    text = rest.split("\n", 1)[0]
    stamp = f"[{microseconds // 1_000_000:5d}.{microseconds % 1_000_000:06d}]"
    # A line break within a message, and other odd bytes, come as \xNN.
    return "".join(f"{stamp} {line}\n" for line in text.replace("\\x0a", "\n").split("\n"))


def _copy_log(kmsg: int, console: int) -> None:
    """Copy new messages of the kernel until this process ends."""
    poll = select.poll()
    poll.register(kmsg, select.POLLIN)
    while True:
        poll.poll()
        try:
            record = os.read(kmsg, _KMSG_RECORD)
        except BlockingIOError:
            continue
        except BrokenPipeError:
            os.write(console, b"testbed: the kernel said more than could be read\n")
            continue
        os.write(console, record_lines(record.decode(errors="replace")).encode())


def _first_process(settings: dict[str, Any], tell: int) -> None:
    os.setsid()
    socket.sethostname(_HOST_NAME)
    console = os.open(settings["console"], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    kmsg = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.lseek(kmsg, 0, os.SEEK_END)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    _enter(_make_root(settings))
    if settings["network"]:
        _network_up()
    signal.signal(signal.SIGCHLD, _reap)
    os.write(tell, b"ready")
    os.close(tell)
    _copy_log(kmsg, console)


def _note(file: str, pid: int) -> None:
    """Note which process the machine is; a number alone is another's later."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    noted = {"pid": pid, "started": int(stat.rpartition(")")[2].split()[19])}
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(file, flags, 0o600), "w") as f:
        json.dump(noted, f)


def main(settings: dict[str, Any]) -> str:
    """Start the machine; return the error, or an empty text."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "ending with the testbed")
    if os.getppid() != settings["parent"]:
        return "the testbed has ended"
    flags = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | (_NEWNET if settings["network"] else 0)
    _check(_libc.unshare(flags), "making namespaces")
    _make_private()
    said, tell = os.pipe()
    held, go = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(said)
        os.close(go)
        try:
            # Not before it is noted: nobody could find it, if this were killed now.
            if os.read(held, 1):
                _first_process(settings, tell)
        except BaseException as e:
            with suppress(OSError):
                os.write(tell, (str(e) or repr(e)).encode())
        finally:
            os._exit(1)
    os.close(tell)
    os.close(held)
    _note(settings["note"], pid)
    os.write(go, b"!")
    with os.fdopen(said) as pipe:
        answer = pipe.read()
    return "" if answer == "ready" else answer or "its first process ended"


if __name__ == "__main__":
    try:
        problem = main(json.loads(sys.argv[1]))
    except OSError as error:
        problem = str(error)
    sys.exit(problem or 0)
