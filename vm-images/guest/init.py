#!/usr/bin/python3 -IS
"""From the kernel's start to processes: the machine's own set-up, in place of an init system.

A virtual machine's initramfs starts it, on a writable root file system; User Mode Linux, which has
everything built in, starts it at once, on the read-only disk. It is no shell script because each
program that one starts costs 10 ms in User Mode Linux, and Python is started for the testbed's
agent anyway, which a child of this process becomes. It ends as busybox init.
"""

from __future__ import annotations

import ctypes
import os
import sys

_MS_NOSUID, _MS_NODEV, _MS_NOATIME, _MS_MOVE = 2, 4, 1024, 8192
_IGNORED = (13, 25)
"""SIGPIPE and SIGXFSZ, which Python ignores."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
_SHARED = "/testbed"
_AGENT = f"{_SHARED}/agent"
_KEYS = "/run/testbed-ssh"
_CORES = f"|/usr/bin/dd of={_SHARED}/core.%s.%P.%e bs=64k count=4096 iflag=fullblock status=none"
"""What the kernel does with core dumps: they go to the computer that the machine runs on."""
_MOUNTS = (
    ("tmp", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777"),
    ("devpts", "/dev/pts", "devpts", 0, "gid=5,mode=620,ptmxmode=666"),
    ("shm", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, "nsdelegate"),
    ("debugfs", "/sys/kernel/debug", "debugfs", 0, None),
    ("tracefs", "/sys/kernel/tracing", "tracefs", 0, None),
)

_libc = ctypes.CDLL(None, use_errno=True)


def _main() -> None:
    if not os.path.exists("/proc/cmdline"):
        _make_root_writable()
        _mount("proc", "/proc", "proc")
        _mount("sys", "/sys", "sysfs")
    with open("/proc/cmdline") as file:
        options = dict(word.partition("=")[::2] for word in file.read().split())
    _mount("run", "/run", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    os.makedirs(_SHARED, exist_ok=True)
    if options.get("testbed.carrier") == "uml":
        nic, scratch = "vec0", "/dev/ubdb"
        _mount("none", _SHARED, "hostfs", 0, options["testbed.shared"])
        # What is written to the shared directory is seen outside once it is written back: soon.
        _write("/proc/sys/vm/dirty_writeback_centisecs", "5")
        _write("/proc/sys/vm/dirty_expire_centisecs", "5")
        os.makedirs("/usr/lib/modules", exist_ok=True)
        os.symlink(f"{_SHARED}/modules", f"/usr/lib/modules/{os.uname().release}")
    else:
        nic, scratch = "eth0", "/dev/vdb"
        data = "trans=virtio,version=9p2000.L,msize=512000,cache=none,access=any"
        _mount("testbed", _SHARED, "9p", 0, data)
    if os.path.exists(f"{_AGENT}/port") and not os.fork():
        _become_agent()
    # The command line is quiet so that the boot is fast; what comes from here on is evidence.
    _write("/proc/sys/kernel/printk", "8")
    _write("/proc/sys/kernel/hung_task_timeout_secs", "30")
    # Also of programs that have changed their user, as smbd does.
    _write("/proc/sys/kernel/core_pattern", _CORES)
    _write("/proc/sys/fs/suid_dumpable", "2")
    _write("/proc/sys/kernel/hostname", "testbed")
    _write(f"/proc/sys/net/ipv6/conf/{nic}/disable_ipv6", "1")
    network = _started_network(nic)
    for directory in ("/dev/pts", "/dev/shm", "/run/lock", "/run/sshd", "/run/samba", _KEYS):
        os.makedirs(directory, exist_ok=True)
    os.chmod("/run/lock", 0o1777)
    for mount in _MOUNTS:
        _mount(*mount)
    if not os.path.lexists("/dev/fd"):
        os.symlink("/proc/self/fd", "/dev/fd")
    _mount(scratch, "/srv", "ext4", _MS_NOATIME)
    # Copied, since sshd wants owner and mode to be right, which a share need not give.
    for name in ("authorized_keys", "host_ed25519"):
        with open(f"{_SHARED}/ssh/{name}") as key:
            _write(f"{_KEYS}/{name}", key.read())
        os.chmod(f"{_KEYS}/{name}", 0o600)
    if os.waitpid(network, 0)[1]:
        raise OSError("ip failed")
    # The agent begins to answer.
    _write("/run/testbed-booted", "")
    # Otherwise whatever is started from here on would ignore them, too.
    for signal in _IGNORED:
        _libc.signal(signal, None)
    os.execve("/usr/bin/busybox", ["busybox", "init"], {**os.environ, "PATH": _PATH})


def _make_root_writable() -> None:
    """Go from the read-only disk to a tmpfs that lies over it."""
    _mount("upper", "/mnt", "tmpfs", 0, "mode=755")
    for name in ("upper", "work", "root"):
        os.mkdir(f"/mnt/{name}")
    data = "lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work"
    _mount("root", "/mnt/root", "overlay", 0, data)
    _mount("/dev", "/mnt/root/dev", "", _MS_MOVE)
    os.chdir("/mnt/root")
    _mount(".", "/", "", _MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def _become_agent() -> None:
    """Become the testbed's agent, in a process that has no other purpose."""
    try:
        os.setsid()
        log = os.open("/run/testbed-agent.log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for number, opened in enumerate((null, log, log)):
            os.dup2(opened, number)
        with open(f"{_AGENT}/port") as file:
            port = file.read()
        sys.path.insert(0, f"{_AGENT}/agent.pyz")
        from smbdirect_testbed.agent.service import main

        main([port])
    finally:
        os._exit(1)


def _started_network(nic: str) -> int:
    """Start giving the machine its network; returns the process that does it."""
    steps = (
        "link set lo up",
        f"address add 10.0.2.15/24 dev {nic}",
        f"link set {nic} up",
        "route add default via 10.0.2.2",
    )
    end, its = os.pipe()
    os.write(its, "\n".join((*steps, "")).encode())
    os.close(its)
    done = os.posix_spawn(
        "/usr/sbin/ip",
        ["ip", "-batch", "-"],
        {"PATH": _PATH},
        file_actions=[(os.POSIX_SPAWN_DUP2, end, 0)],
    )
    os.close(end)
    return done


def _mount(source: str, target: str, kind: str, flags: int = 0, data: str | None = None) -> None:
    options = data.encode() if data else None
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, options) < 0:
        raise OSError(ctypes.get_errno(), f"cannot mount {target}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


# A failure ends the machine, with its traceback on the console: the kernel cannot do without it.
_main()
