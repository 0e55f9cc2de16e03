"""Runs in a machine: makes and removes its hosts, links and RDMA links.

This file is copied into the machine alone and started as a program there, so it imports nothing of
this package. It answers requests, one JSON object a line, on standard input and output, or on the
serial port that its argument names::

    {"id": 1, "do": "make_hosts", "with": {"names": [...]}}
    ->  {"id": 1, "ok": {...}} or {"id": 1, "error": "..."}

It is one process for the life of an environment because starting Python and pyroute2 costs
seconds under TCG. On a serial port it outlives whoever talks to it, and is saved with a template
and there in every clone; asked for what it made already, it gives the answer that it gave then.

A host in a namespace is a process that sleeps in network, mount and UTS namespaces of its own.
Commands enter these with nsenter, so that a mount made by one command is there for the next
(``ip netns exec`` would give every command a mount namespace of its own).
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

# pyroute2's own module imports all of the package, which takes three times as long as what is
# needed here: so it is there without having been run.
_pyroute2 = importlib.util.find_spec("pyroute2")
if _pyroute2 and "pyroute2" not in sys.modules:
    sys.modules["pyroute2"] = importlib.util.module_from_spec(_pyroute2)
from pyroute2.iproute import IPRoute  # noqa: E402

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWNET = 0x40000000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_MS_NOATIME = 0x400
_OPEN_TREE, _MOVE_MOUNT = 428, 429
"""Numbers of system calls, the same on every architecture."""
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD = -100
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_IFA_F_NODAD = 0x02
_NUD_PERMANENT = 0x80
_DEADLINE = 30.0
"""Seconds that the kernel gets for anything asynchronous."""

_MOUNTS = (
    ("testbed", "/testbed", "9p", 0, "trans=virtio,version=9p2000.L,msize=512000,cache=none"),
    ("/dev/vdb", "/srv", "ext4", _MS_NOATIME, None),
)
"""What belongs to one machine alone and is no part of a template: as the image's init mounts it."""

_SSH_KEYS = Path("/run/testbed-ssh")
_SSHD_PID = Path("/run/sshd.pid")

_MAKING = {"make_hosts", "make_link", "place_wire", "make_rdma_links"}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(status: int) -> None:
    if status < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))


def _unshare(flags: int) -> None:
    _check(_libc.unshare(flags))


def _mount(source: str, target: str, kind: str, flags: int, data: str | None = None) -> None:
    options = data.encode() if data else None
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), flags, options))


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_DEADLINE:g} s in vain for {what}")
        time.sleep(0.02)


class Agent:
    """What was made, so that it can be unmade in the opposite order."""

    def __init__(self) -> None:
        self.root = IPRoute()
        self.sshd = 0
        self.holders: dict[str, int] = {}
        self.stacks: dict[str, IPRoute] = {}
        self.interfaces: list[tuple[str, str]] = []
        self.rdma_links: list[tuple[str, str]] = []

    def make_hosts(self, namespaces: list[str], machine_stack: list[str]) -> dict[str, int]:
        """Make the hosts; return the process id to enter each by (0: the machine's own stack)."""
        for name in namespaces:
            self.holders[name] = _start_holder(name)
            self.stacks[name] = self._in_stack(name, IPRoute)
            self._up(name, "lo")
        for name in machine_stack:
            self.holders[name] = 0
            self.stacks[name] = self.root
        return self.holders

    def make_link(
        self, ends: list[dict[str, Any]], mtu: int, neighbours: bool, delay: float, loss: float
    ) -> None:
        """Join two hosts by a veth pair; each end: host, device, mac, ipv4, ipv6.

        :param neighbours: set permanent neighbour entries, so that the first RDMA connection does
            not wait 5 s for the address resolution of ib_core
        :param delay: milliseconds, in each direction
        :param loss: per cent, in each direction
        """
        a, b = ends
        self.root.link(
            "add",
            ifname=_temporary(a),
            kind="veth",
            mtu=mtu,
            address=a["mac"],
            peer={"ifname": _temporary(b), "mtu": mtu, "address": b["mac"]},
        )
        for end in ends:
            self._place(end)
            self.interfaces.append((end["host"], end["device"]))
        for end in ends:
            self._address(end)
        for end, peer in ((a, b), (b, a)):
            if neighbours:
                self._know(end, peer)
            self._shape(end, delay, loss)
        for end in ends:
            self._wait_up(end)

    def place_wire(
        self,
        end: dict[str, Any],
        peer: dict[str, Any],
        mtu: int,
        neighbours: bool,
        delay: float,
        loss: float,
    ) -> None:
        """Give a host its end of a wire to another machine: an interface that is there already.

        See :meth:`make_link`.
        """
        (index,) = self.root.link_lookup(address=end["mac"])
        self.root.link("set", index=index, state="down")
        self.root.link("set", index=index, ifname=_temporary(end), mtu=mtu)
        self._place(end)
        self._address(end)
        if neighbours:
            self._know(end, peer)
        self._shape(end, delay, loss)
        self._wait_up(end)

    def make_rdma_links(self, links: list[dict[str, Any]]) -> None:
        """Put RDMA links on interfaces; wait until they are active and have their addresses.

        One after the other: rdma_rxe refuses a link with EPERM while another is being made in the
        same namespace. Each link: host, device, kind, name, and gids (how many GID table entries
        the interface's addresses make).
        """
        for link in links:
            add = ["rdma", "link", "add", link["name"], "type", link["kind"]]
            self._run(link["host"], *add, "netdev", link["device"])
            self.rdma_links.append((link["host"], link["name"]))
        for link in links:
            name, port = link["name"], Path("/sys/class/infiniband") / link["name"] / "ports/1"
            _wait(partial(_active, port), f"RDMA link {name} to be active")
            _wait(
                partial(_has_gids, port, link["gids"]), f"{link['gids']} GIDs on RDMA link {name}"
            )

    def unmake(self) -> None:
        """Remove RDMA links, then links, then hosts; every removal is waited for.

        An RDMA link outlives nothing: removed after its namespace, it would be left behind.
        """
        while self.rdma_links:
            host, name = self.rdma_links.pop()
            self._run(host, "rdma", "link", "del", name)
            _wait(partial(_gone, Path("/sys/class/infiniband") / name), f"RDMA link {name} to go")
        while self.interfaces:
            host, device = self.interfaces.pop()
            if found := self.stacks[host].link_lookup(ifname=device):
                self.stacks[host].link("del", index=found[0])
        for name, pid in self.holders.items():
            if pid:
                self.stacks[name].close()
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self.holders.clear()
        self.stacks.clear()

    def freeze(self) -> None:
        """Let go of what belongs to this machine alone, so that it can become a template."""
        for pid in filter(None, self.holders.values()):
            _in_mounts_of(pid, _unmount_all)
        _unmount_all()
        self.sshd = int(_SSHD_PID.read_text())
        _SSHD_PID.unlink()

    def thaw(self, time_now: float, entropy: str, mac: str, keys: dict[str, str]) -> None:
        """Become a machine of its own, after having been a copy of a template.

        :param time_now: seconds since the epoch
        :param entropy: random bytes, in hexadecimal
        :param mac: the address for the interface that ssh comes by
        :param keys: files for sshd
        """
        time.clock_settime(time.CLOCK_REALTIME, time_now)
        _reseed(bytes.fromhex(entropy))
        for name, content in keys.items():
            file = _SSH_KEYS / name
            file.write_text(content)
            file.chmod(0o600)
        # It starts itself anew, and reads the host key then.
        os.kill(self.sshd, signal.SIGHUP)
        # Otherwise the network behind it may know the template's address for a while, and not ours.
        _write_sysctls({"net/ipv4/conf/eth0/arp_notify": "1"})
        (index,) = self.root.link_lookup(ifname="eth0")
        self.root.link("set", index=index, address=mac)
        for source, target, kind, flags, data in _MOUNTS:
            _mount(source, target, kind, flags, data)
        for pid in filter(None, self.holders.values()):
            trees = {target: _open_tree(target) for _, target, _, _, _ in _MOUNTS}
            _in_mounts_of(pid, partial(_place_trees, trees))
            for tree in trees.values():
                os.close(tree)

    def run(self, argv: list[str], input: str, timeout: float) -> tuple[int, str, str]:
        """Run a command as ssh would: for the time until ssh is ready."""
        done = subprocess.run(
            argv, input=input.encode(), capture_output=True, timeout=timeout, cwd="/root"
        )
        return (
            done.returncode,
            done.stdout.decode("utf-8", "replace"),
            done.stderr.decode("utf-8", "replace"),
        )

    def _place(self, end: dict[str, Any]) -> None:
        host, device = end["host"], end["device"]
        (index,) = self.root.link_lookup(ifname=_temporary(end))
        if pid := self.holders[host]:
            self.root.link("set", index=index, net_ns_pid=pid)
            (index,) = self.stacks[host].link_lookup(ifname=_temporary(end))
        else:
            _write_sysctls({f"net/ipv6/conf/{_temporary(end)}/accept_dad": "0"})
        self.stacks[host].link("set", index=index, ifname=device)

    def _address(self, end: dict[str, Any]) -> None:
        """Give an interface its addresses and switch it on."""
        ipr = self.stacks[end["host"]]
        index = self._index(end["host"], end["device"])
        for key, family in (("ipv4", socket.AF_INET), ("ipv6", socket.AF_INET6)):
            address, prefix = end[key].split("/")
            ipr.addr(
                "add",
                index=index,
                address=address,
                prefixlen=int(prefix),
                family=family,
                flags=_IFA_F_NODAD if family == socket.AF_INET6 else 0,
            )
        ipr.link("set", index=index, state="up")

    def _know(self, end: dict[str, Any], peer: dict[str, Any]) -> None:
        """Set permanent neighbour entries for the other end."""
        for key, family in (("ipv4", socket.AF_INET), ("ipv6", socket.AF_INET6)):
            self.stacks[end["host"]].neigh(
                "replace",
                ifindex=self._index(end["host"], end["device"]),
                dst=peer[key].split("/")[0],
                lladdr=peer["mac"],
                state=_NUD_PERMANENT,
                family=family,
            )

    def _shape(self, end: dict[str, Any], delay: float, loss: float) -> None:
        """Have packets come late or not at all; nothing happens without need."""
        what = ["delay", f"{delay}ms"] if delay else []
        what += ["loss", f"{loss}%"] if loss else []
        if what:
            tc = ["tc", "qdisc", "add", "dev", end["device"], "root", "netem", *what]
            self._run(end["host"], *tc, "limit", "100000")

    def _index(self, host: str, device: str) -> int:
        (index,) = self.stacks[host].link_lookup(ifname=device)
        return int(index)

    def _up(self, host: str, device: str) -> None:
        self.stacks[host].link("set", index=self._index(host, device), state="up")

    def _wait_up(self, end: dict[str, Any]) -> None:
        host, device = end["host"], end["device"]

        def up() -> bool:
            (link,) = self.stacks[host].get_links(self._index(host, device))
            # Interfaces without a notion of a carrier never say more than "unknown".
            return link.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN")

        _wait(up, f"interface {device} of host {host} to be up")

    def _in_stack(self, host: str, make: Callable[[], IPRoute]) -> IPRoute:
        """Call ``make`` in a host's network namespace: a netlink socket stays where it was made."""
        own = os.open("/proc/self/ns/net", os.O_RDONLY)
        other = os.open(f"/proc/{self.holders[host]}/ns/net", os.O_RDONLY)
        try:
            _check(_libc.setns(other, _CLONE_NEWNET))
            try:
                return make()
            finally:
                _check(_libc.setns(own, _CLONE_NEWNET))
        finally:
            os.close(own)
            os.close(other)

    def _run(self, host: str, *argv: str) -> None:
        pid = self.holders[host]
        enter = ["nsenter", "--target", str(pid), "--net", "--mount", "--"] if pid else []
        done = subprocess.run(
            [*enter, *argv], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            raise OSError(f"{' '.join(argv)} on host {host}: {done.stderr.strip()}")


def _temporary(end: dict[str, Any]) -> str:
    """A name for an interface until it is in its host: unique in the machine's own stack."""
    return "t" + str(end["mac"]).replace(":", "")


def _gone(path: Path) -> bool:
    return not path.exists()


def _active(port: Path) -> bool:
    return "ACTIVE" in (port / "state").read_text()


def _has_gids(port: Path, wanted: int) -> bool:
    # The table is filled from its start; rxe's has 1024 entries, too many to read under TCG.
    return all(_gid_is_set(port / "gids" / str(n)) for n in range(wanted))


def _gid_is_set(gid: Path) -> bool:
    try:
        return gid.read_text().strip("0:\n") != ""
    except OSError:
        return False


def _start_holder(name: str) -> int:
    """Start the process that holds a host's namespaces; return its id once they are ready."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            _unshare(_CLONE_NEWNET | _CLONE_NEWNS | _CLONE_NEWUTS)
            _mount("none", "/", "none", _MS_REC_PRIVATE)
            _mount("sysfs", "/sys", "sysfs", 0)
            socket.sethostname(name)
            _write_sysctls({"net/ipv6/conf/default/accept_dad": "0"})
            os.write(tell, b"1")
        except BaseException as e:
            os.write(tell, str(e).encode())
            os._exit(1)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.execvp("sleep", ["sleep", "infinity"])
    os.close(tell)
    said = os.read(ready, 1000).decode()
    os.close(ready)
    if said != "1":
        raise OSError(f"cannot make host {name}: {said}")
    return pid


def _unmount_all() -> None:
    os.chdir("/")
    for _, target, _, _, _ in reversed(_MOUNTS):
        _check(_libc.umount2(target.encode(), 0))


def _in_mounts_of(pid: int, do: Callable[[], object]) -> None:
    """Call something in a process of its own in the mount namespace of another."""
    failed, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
            _check(_libc.setns(namespace, _CLONE_NEWNS))
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


def _open_tree(target: str) -> int:
    """A copy of a mount that is nowhere yet."""
    tree = int(_libc.syscall(_OPEN_TREE, _AT_FDCWD, target.encode(), _OPEN_TREE_CLONE))
    _check(tree)
    return tree


def _place_trees(trees: dict[str, int]) -> None:
    for target, tree in trees.items():
        to = (_AT_FDCWD, target.encode())
        _check(int(_libc.syscall(_MOVE_MOUNT, tree, b"", *to, _MOVE_MOUNT_F_EMPTY_PATH)))


def _reseed(entropy: bytes) -> None:
    """Mix random bytes into the kernel's generator and have it use them at once; random(4)."""
    with open("/dev/urandom", "wb", buffering=0) as device:  # noqa: PTH123
        header = struct.pack("ii", 8 * len(entropy), len(entropy))
        fcntl.ioctl(device, _RNDADDENTROPY, header + entropy)
        fcntl.ioctl(device, _RNDRESEEDCRNG)


def _write_sysctls(values: dict[str, str]) -> None:
    for key, value in values.items():
        (Path("/proc/sys") / key).write_text(value)


def serve(requests: Iterable[bytes], answers: BinaryIO) -> None:
    """Answer requests until there are none; what was made stays."""
    agent = Agent()
    made: dict[str, Any] = {}

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()

    def do(name: str, arguments: dict[str, Any]) -> Any:
        key = json.dumps([name, arguments])
        if key not in made:
            result = getattr(agent, name)(**arguments)
            if name == "unmake":
                made.clear()
            if name not in _MAKING:
                return result
            made[key] = result
        return made[key]

    say({"id": 0, "ok": "ready"})
    for line in requests:
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {"ok": do(request["do"], request["with"])}
        except Exception as e:
            answer = {"error": f"{request['do']}: {type(e).__name__}: {e}"}
        say({"id": request["id"], **answer})


def _open_port(path: str) -> int:
    """Open a serial port so that it passes all bytes as they are."""
    port = os.open(path, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(port)
    settings = termios.tcgetattr(port)
    # The emulated port is as fast as it can be; but it waits for as long as four bytes would take.
    settings[4] = settings[5] = termios.B115200
    termios.tcsetattr(port, termios.TCSANOW, settings)
    return port


if __name__ == "__main__":
    if len(sys.argv) > 1:
        port = _open_port(sys.argv[1])
        serve(open(port, "rb", closefd=False), open(port, "wb", closefd=False))  # noqa: SIM115
    else:
        serve(sys.stdin.buffer, sys.stdout.buffer)
