"""What users of SMB-Direct sockets must not do. Runs in a machine, plain Python, as root.

Every client command prints one line of JSON. ``smbdirect.py`` beside this file is the testbed's
``socket.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import mmap
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smbdirect_testbed import smbdirect
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import smbdirect

import frames
from frames import limit, name

_USER = 65530
"""Nobody else's."""
_MANY = 400
"""Descriptors: of the usual 1024 that a process may have."""
_DENY = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
"""A BPF program: the result is 0, which says no."""
_SYS_BPF = 321
_SOCK_ADDR = 18
_ATTACH = {"bind": 8, "connect": 10}


def serve(options: argparse.Namespace) -> None:
    """Echo until killed."""
    wanted = smbdirect.ConnectionParameters(**json.loads(options.wanted), negotiate_timeout_ms=5000)
    with smbdirect.smbdirect_socket(parameters=wanted) as listener:
        frames.serve(listener, (options.address, options.port), frames.echo)


def child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What some work in a process of its own found out; the process goes on until told."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(theirs, json.dumps(work()).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        result: dict[str, Any] = json.loads(answer.read())
    os.waitpid(pid, 0)
    return result


def open_one(family: int = socket.AF_INET) -> socket.socket:
    return smbdirect.smbdirect_socket(family)


def addresses(options: argparse.Namespace) -> dict[str, Any]:
    """Addresses that mean this computer, or many."""
    results: dict[str, Any] = {"connect": {}, "bind": {}}
    families = {
        socket.AF_INET: ["0.0.0.0", "127.0.0.1", "127.1.2.3", "224.0.0.1", "255.255.255.255"],
        socket.AF_INET6: ["::", "::1", "ff02::1", "::ffff:0.0.0.0", "::ffff:127.0.0.1"],
    }
    for family, all_of_them in families.items():
        for address in all_of_them:
            with open_one(family) as sock:
                sock.settimeout(5)
                there = (address, options.port)
                results["connect"][address] = frames.outcome(partial(sock.connect, there))
            if address not in ("0.0.0.0", "::", "::ffff:0.0.0.0"):
                with open_one(family) as sock:
                    results["bind"][address] = frames.outcome(partial(sock.bind, (address, 5599)))
    return results


def ports(options: argparse.Namespace) -> dict[str, Any]:
    """What a user may bind."""

    def as_user() -> dict[str, Any]:
        os.setuid(_USER)
        results = {}
        for port in (445, 5445, 5446):
            with open_one() as sock:
                results[str(port)] = frames.outcome(partial(sock.bind, (options.own, port)))
        return results

    return child(as_user)


def hooks(options: argparse.Namespace) -> dict[str, Any]:
    """With programs of a control group that say no, and without."""
    libc = ctypes.CDLL(None, use_errno=True)

    def bpf(command: int, attributes: bytes) -> int:
        buffer = ctypes.create_string_buffer(attributes, 128)
        result: int = libc.syscall(_SYS_BPF, command, buffer, 128)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def tried() -> dict[str, Any]:
        results = {}
        with open_one() as sock:
            results["bind"] = frames.outcome(lambda: sock.bind((options.own, 0)))
        with open_one() as sock:
            limit(sock, 5)
            results["connect"] = frames.outcome(
                lambda: sock.connect((options.address, options.port))
            )
        return results

    root = Path("/run/safety-cgroup")
    root.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "cgroup2", "none", root], check=True)
    try:
        group = root / "safety"
        group.mkdir(exist_ok=True)
        results = {"without": tried()}
        directory = os.open(group, os.O_RDONLY)
        code = ctypes.create_string_buffer(_DENY)
        gpl = ctypes.create_string_buffer(b"GPL")
        for attach_type in _ATTACH.values():
            load = struct.pack(
                "<IIQQIIQII16sII",
                *(_SOCK_ADDR, 2, ctypes.addressof(code), ctypes.addressof(gpl)),
                *(0, 0, 0, 0, 0, b"", 0, attach_type),
            )
            try:
                program = bpf(5, load)
            except OSError as e:
                return {"impossible": name(e)}
            bpf(8, struct.pack("<IIII", directory, program, attach_type, 0))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        results["with"] = tried()
        (root / "cgroup.procs").write_text(str(os.getpid()))
        results["outside"] = tried()
        return results
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def charged() -> int:
    """KiB that all sockets are charged for, by /proc/net/protocols."""
    for line in Path("/proc/net/protocols").read_text(encoding="ascii").splitlines():
        if line.startswith("SMBDIRECT "):
            return int(line.split()[3]) * os.sysconf("SC_PAGESIZE") // 1024
    raise LookupError("SMBDIRECT")


def taken() -> int:
    """KiB of memory that the kernel uses, by /proc/meminfo."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return values["Slab"] + values["VmallocUsed"]


def extreme(options: argparse.Namespace) -> dict[str, Any]:
    """Connections with as many registrations as there may be: what they take, and are charged."""
    wanted = smbdirect.ConnectionParameters(**json.loads(options.wanted))
    connections: list[socket.socket] = []

    def more(count: int) -> tuple[int, int]:
        for _ in range(count):
            sock = smbdirect.smbdirect_socket(parameters=wanted)
            limit(sock, 10)
            sock.connect((options.address, options.port))
            connections.append(sock)
        return charged(), taken()

    more(3)  # what the first ones take stays
    before = more(1)
    after = more(options.count)
    for sock in connections:
        sock.close()
    return {"charged": after[0] - before[0], "taken": after[1] - before[1]}


def hoard(options: argparse.Namespace) -> dict[str, Any]:
    """A user connects to himself until he may not; then root connects to somebody else."""

    def as_user() -> dict[str, Any]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_MANY, _MANY))
        os.setuid(_USER)
        ends: Counter[str] = Counter()
        kept: list[socket.socket] = []
        with open_one() as listener:
            listener.bind((options.own, 5598))
            listener.listen(4)
            listener.settimeout(0.5)
            # What a failed attempt took is given back after a while.
            while sum(ends.values()) - ends["ok"] < 3 and len(kept) < _MANY - 20:
                client = open_one()
                limit(client, 5)
                kept.append(client)
                # It is complete when it has been accepted.
                accepting = threading.Thread(target=accept, args=[listener, kept])
                accepting.start()
                ends[frames.outcome(partial(client.connect, (options.own, 5598)))] += 1
                accepting.join()
        with smbdirect.smbdirect_socket() as sock:
            limit(sock, 5)
            own = frames.outcome(lambda: sock.connect((options.address, options.port)))
        os.write(ready, json.dumps({"ends": ends, "one more": own}).encode())
        os.close(ready)
        os.read(done, 1)
        return {}

    def accept(listener: socket.socket, kept: list[socket.socket]) -> None:
        with contextlib.suppress(OSError):
            kept.append(listener.accept()[0])

    told, ready = os.pipe()
    done, over = os.pipe()
    before = charged()
    pid = os.fork()
    if not pid:
        os.close(over)
        as_user()
        os._exit(0)
    os.close(ready)
    result: dict[str, Any] = json.loads(os.read(told, 4096))
    result["charged"] = charged() - before
    with open_one() as sock:
        limit(sock, 5)
        result["root"] = frames.outcome(lambda: sock.connect((options.address, options.port)))
        if result["root"] == "ok":
            result["root"] = frames.echoed(sock)
    os.close(over)
    os.waitpid(pid, 0)
    return result


def race(options: argparse.Namespace) -> dict[str, Any]:
    """Registrations are given back at the moment that the connection ends."""
    ends: Counter[str] = Counter()
    memory = memoryview(mmap.mmap(-1, 4096))

    def give_back(sock: socket.socket, tokens: list[int]) -> None:
        for token in tokens:
            request = smbdirect._COOKIE.pack(1) + smbdirect._REQUEST.pack(token, 0)
            control = [(smbdirect.SOL_SMBDIRECT, smbdirect._RDMA_DEREGISTER, request)]
            ends[frames.outcome(partial(sock.sendmsg, [], control, socket.MSG_OOB))] += 1

    for _ in range(options.count):
        sock = open_one()
        limit(sock, 5)
        sock.connect((options.address, options.port))
        regions = [smbdirect.rdma_register(sock, memory, remote_write=True) for _ in range(8)]

        tokens = [d.token for region in regions for d in region.descriptors]
        threads = [threading.Thread(target=give_back, args=[sock, tokens[i::2]]) for i in range(2)]
        threads.insert(random.randrange(3), threading.Thread(target=sock.shutdown, args=[2]))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sock.close()
    return {"ends": dict(ends)}


def closing(options: argparse.Namespace) -> dict[str, Any]:
    """Sockets are closed that cannot get rid of their data; how many still try."""
    for _ in range(options.count):
        sock = open_one()
        sock.connect((options.address, options.port))
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.sendall(frames.frame(bytes(65536)))
        sock.close()

    def states() -> Counter[str]:
        lines = Path("/proc/net/smbdirect").read_text(encoding="ascii").splitlines()
        return Counter(line.split()[0] for line in lines[1:])

    frames.until(lambda: states()["CLOSING"] <= options.most, 4)
    return {"closing": states()["CLOSING"]}


def preload(options: argparse.Namespace) -> dict[str, Any]:
    """Under the preload: a pointer to nowhere, and what an exchanged socket keeps."""
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 77)
        sock.bind((options.own, options.port))
        length = ctypes.c_uint(4)
        arguments = (sock.fileno(), socket.IPPROTO_TCP, socket.TCP_NODELAY)
        nowhere = libc.getsockopt(*arguments, ctypes.c_void_p(8), ctypes.byref(length))
        return {
            "protocol": sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL),
            "nowhere": errno.errorcode[ctypes.get_errno()] if nowhere else "ok",
            "no delay": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            "mark": sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK),
        }


def hold(options: argparse.Namespace) -> None:
    """Accept, and read nothing, until killed."""
    kept: list[socket.socket] = []
    with smbdirect.smbdirect_socket() as listener:
        frames.serve(listener, (options.address, options.port), kept.append)


def main() -> None:
    parser = argparse.ArgumentParser(description="What users must not be able to do.")
    actions = parser.add_subparsers(dest="action", required=True)
    for do in (serve, hold, addresses, ports, hooks, extreme, hoard, race, closing, preload):
        action = actions.add_parser(do.__name__, help=do.__doc__)
        action.add_argument("address")
        action.add_argument("port", type=int)
        action.add_argument("--own", default="", help="address of the client")
        action.add_argument("--wanted", default="{}", help="parameters")
        action.add_argument("--count", type=int, default=20)
        action.add_argument("--most", type=int, default=0)
        action.set_defaults(do=do)
    options = parser.parse_args()
    result = options.do(options)
    if result is not None:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
