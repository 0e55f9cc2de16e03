"""Connections that come and go, processes that are killed, and a module that is loaded again.

Runs in a machine as root, with its plain Python; its processes enter the hosts' network
namespaces. Prints one line of JSON; :func:`leaks` says what it means for memory.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import itertools
import json
import mmap
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

IPPROTO_SMBDIRECT = 257
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_MODULE = "smbdirect_socket"
_ACCEPTING = 3
"""References to the module: a listener, its protocol, and the socket that accept() will return."""
_PORT = 5480
_LENGTH = struct.Struct(">I")
_BLOCKS = 4
"""Memory is compared between blocks; the first is to warm up."""
_PATIENCE = 60.0
"""Seconds in which what must happen soon must have happened."""
_NOTICE = 20.0
"""Seconds in which a process must notice that its peer was killed."""
_LEAKED_KIB = 128
"""Of memory, for each connection: more in every block is a leak, whatever slabs say."""


class Trouble(Exception):
    """Something that must not be."""


# Memory.


def memory() -> dict[str, Any]:
    """What the kernel uses now, without what it would give back at once."""
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
    slabs = {}
    for line in Path("/proc/slabinfo").read_text().splitlines()[2:]:
        name, active, *_ = line.split()
        slabs[name] = int(active)
    totals = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, amount = line.split(":")
        totals[name] = int(amount.split()[0])
    # Areas of vmalloc that nobody uses any more are kept until there are many.
    slabs.pop("vmap_area", None)
    slabs["page of vmalloc"] = totals["VmallocUsed"] * 1024 // mmap.PAGESIZE
    return {"slabs": slabs, "available_kib": totals["MemAvailable"]}


def unreferenced() -> list[str]:
    """What kmemleak finds, in a kernel that has it."""
    report = Path("/sys/kernel/debug/kmemleak")
    if not report.exists():
        return []
    report.write_text("scan")
    return [line for line in report.read_text().splitlines() if line.startswith("unreferenced")]


def leaks(blocks: Sequence[dict[str, Any]], cycles: int) -> list[str]:
    """What grew in every block by an object, or by much memory, for each cycle.

    Numbers of slab objects jump by whole pages, and other processes use some; only what never
    stops growing is lost.

    :param blocks: :func:`memory` before the first and after each block, the first to warm up
    :param cycles: in each block
    """
    steps = list(itertools.pairwise(blocks[1:]))
    found = []
    for name in blocks[-1]["slabs"]:
        growth = [b["slabs"].get(name, 0) - a["slabs"].get(name, 0) for a, b in steps]
        if min(growth) >= cycles:
            found.append(f"slab {name} grew by {growth} objects in blocks of {cycles} cycles")
    lost = [a["available_kib"] - b["available_kib"] for a, b in steps]
    if min(lost) >= cycles * _LEAKED_KIB:
        found.append(f"available memory fell by {lost} KiB in blocks of {cycles} cycles")
    return found


def references() -> int:
    return int(Path(f"/sys/module/{_MODULE}/refcnt").read_text())


def wait_for(condition: Callable[[], bool], what: str, seconds: float = _PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Trouble(f"timed out after {seconds:g} s waiting for {what}")
        time.sleep(0.05)


# Both sides of a connection.


def frame(size: int) -> bytes:
    return _LENGTH.pack(size) + os.urandom(size)


def enter(pid: int) -> None:
    """Enter a process's network namespace; 0 is the machine's own."""
    if pid:
        with Path(f"/proc/{pid}/ns/net").open() as namespace:
            # os.setns() came with Python 3.12.
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


def child(pid: int, work: Callable[[], None]) -> int:
    """Do something in a process of its own, in a host; its process id."""
    if made := os.fork():
        return made
    # The child never returns from here, whatever happens.
    status = 1
    try:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        # It ends with this program, however that ends.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        enter(pid)
        work()
        status = 0
    except BaseException as e:
        print(f"{e!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def listener(address: str, port: int, backlog: int = 8) -> socket.socket:
    """Listen; the port of a process that was killed may not be free yet."""
    sock = socket.socket(family(address), socket.SOCK_STREAM, IPPROTO_SMBDIRECT)
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            sock.bind((address, port))
            break
        except OSError as e:
            if e.errno != errno.EADDRINUSE or time.monotonic() > end:
                raise
            time.sleep(0.1)
    sock.listen(backlog)
    return sock


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve(sock: socket.socket) -> None:
    """Echo, one connection after the other; what a client leaves unfinished is no matter."""
    while True:
        connection, _ = sock.accept()
        with connection, contextlib.suppress(OSError):
            while piece := connection.recv(65536):
                connection.sendall(piece)


def connected(address: str, port: int) -> socket.socket:
    sock = socket.socket(family(address), socket.SOCK_STREAM, IPPROTO_SMBDIRECT)
    sock.settimeout(_PATIENCE)
    sock.connect((address, port))
    return sock


def exchange(sock: socket.socket, size: int) -> None:
    sent = frame(size)
    sock.sendall(sent)
    got = b""
    while len(got) < len(sent):
        piece = sock.recv(65536)
        if not piece:
            raise EOFError(f"the stream ended after {len(got)} bytes of {len(sent)}")
        got += piece
    if got != sent:
        raise Trouble(f"the echo of {size} bytes differs")


def come_and_go(address: str, random_: random.Random) -> None:
    """One connection that ends in one of several ways."""
    with connected(address, _PORT) as sock:
        how = random_.choice(("echo", "echo", "large echo", "at once", "half a frame", "reset"))
        if "echo" in how:
            exchange(sock, 200_000 if how == "large echo" else 1000)
        elif how == "half a frame":
            sock.sendall(frame(5000)[:3000])
        elif how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(frame(50_000))


def gone(pid: int, seconds: float) -> int | None:
    """A process's status as soon as it has ended; None if it does not in time."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > end:
            return None
        time.sleep(0.01)


def killed(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    if gone(pid, _PATIENCE) is None:
        raise Trouble(f"process {pid} does not end after SIGKILL")


# What is done.


def cycles(options: argparse.Namespace) -> dict[str, Any]:
    """Connections, one after the other; memory after each block of them."""
    before = references()
    server = child(options.server, lambda: serve(listener(options.address, _PORT)))
    listening = before + _ACCEPTING
    wait_for(lambda: references() == listening, "the server")
    each = max(1, options.count // _BLOCKS)
    random_ = random.Random(options.seed)
    blocks = [memory()]
    seconds = []
    for _ in range(_BLOCKS):
        seeds = [random_.random() for _ in range(each)]

        def clients(seeds: list[float] = seeds) -> None:
            for seed in seeds:
                come_and_go(options.address, random.Random(seed))

        begun = time.monotonic()
        client = child(options.client, clients)
        status = gone(client, each * 5 + _PATIENCE)
        if status != 0:
            raise Trouble(f"the client ended with status {status}")
        seconds.append(time.monotonic() - begun)
        wait_for(lambda: references() <= listening, "closed connections to go away")
        blocks.append(memory())
    killed(server)
    wait_for(lambda: references() <= before, "the server's sockets to go away")
    found = leaks(blocks, each) + unreferenced()
    return {"cycles": each * _BLOCKS, "seconds": seconds, "leaks": found}


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """SIGKILL for one side at a random moment, the other must notice if there was a connection."""
    before = references()
    random_ = random.Random(options.seed)
    sides = ("server", "client")
    victims = dict.fromkeys(sides, 0)
    noticed = []
    for number in range(options.count):
        port = _PORT + 1 + number % 8
        met = mmap.mmap(-1, mmap.PAGESIZE)  # shared: a byte for each side that has a connection
        pids = {
            "server": child(options.server, partial(echo_once, options.address, port, met)),
            "client": child(
                options.client, partial(stream, options.address, port, met, random_.random())
            ),
        }
        time.sleep(random_.random() * options.longest)
        victim = random_.choice(sides)
        index = 1 - sides.index(victim)
        other = pids[sides[index]]
        killed(pids[victim])
        victims[victim] += 1
        begun = time.monotonic()
        status = gone(other, 0.5)
        if status is None and met[index]:
            status = gone(other, _NOTICE)
            if status is None:
                killed(other)
                raise Trouble(f"kill {number}: the {sides[index]} did not notice in {_NOTICE:g} s")
        if status is None:
            killed(other)  # it waits for a peer that never was
        elif status:
            raise Trouble(f"kill {number}: the {sides[index]} ended with status {status}")
        else:
            noticed.append(round(time.monotonic() - begun, 3))
    wait_for(lambda: references() <= before, "the sockets of killed processes to go away")
    return {"kills": victims, "noticed_seconds": noticed}


def echo_once(address: str, port: int, met: mmap.mmap) -> None:
    """Serve one client, to its end."""
    with listener(address, port) as sock:
        connection, _ = sock.accept()
        met[0] = 1
        with connection, contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                connection.sendall(piece)


def stream(address: str, port: int, met: mmap.mmap, seed: float) -> None:
    """Exchange frames until the server is gone."""
    sizes = random.Random(seed)
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            sock = connected(address, port)
            break
        except ConnectionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
    met[1] = 1
    with sock, contextlib.suppress(ConnectionError, EOFError):
        while True:
            exchange(sock, sizes.choice((1, 1000, 5000, 100_000)))


def modules(options: argparse.Namespace) -> dict[str, Any]:
    """Load and unload the module, with a connection in between; memory after each block."""
    each = max(1, options.count // _BLOCKS)
    wait_for(lambda: references() == 0, "all sockets to be closed")
    subprocess.run(["rmmod", _MODULE], check=True)
    blocks = [memory()]
    for _ in range(_BLOCKS):
        for _ in range(each):
            subprocess.run(["insmod", options.module], check=True)
            server = child(options.server, lambda: serve(listener(options.address, _PORT)))
            wait_for(lambda: references() > 0, "the server")
            client = child(options.client, lambda: come_and_go(options.address, random.Random(1)))
            if status := gone(client, _PATIENCE):
                raise Trouble(f"the client ended with status {status}")
            killed(server)
            wait_for(lambda: references() == 0, "all sockets to go away")
            subprocess.run(["rmmod", _MODULE], check=True)
        blocks.append(memory())
    subprocess.run(["insmod", options.module], check=True)
    return {"cycles": each * _BLOCKS, "leaks": leaks(blocks, each) + unreferenced()}


def hoard(options: argparse.Namespace) -> dict[str, Any]:
    """Connect to somebody who accepts nobody, until the kernel has had enough."""
    before = references()
    total = available = memory()["available_kib"]
    server = child(options.server, lambda: wait_listening(options.address))
    wait_for(lambda: references() > before, "the server")
    enter(options.client)
    socks = []
    errors: Counter[str] = Counter()
    for _ in range(options.count):
        sock = socket.socket(family(options.address), socket.SOCK_STREAM, IPPROTO_SMBDIRECT)
        sock.setblocking(False)
        socks.append(sock)
        errors[os.strerror(sock.connect_ex((options.address, _PORT)))] += 1
        available = min(available, memory()["available_kib"])
    # Those that are under way get their buffers, or are refused.
    end = time.monotonic() + 3
    while time.monotonic() < end:
        available = min(available, memory()["available_kib"])
        time.sleep(0.1)
    for sock in socks:
        if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            errors[os.strerror(error)] += 1
        sock.close()
    killed(server)
    wait_for(lambda: references() <= before, "all sockets to go away")
    return {"total_kib": total, "least_kib": available, "results": dict(errors)}


def wait_listening(address: str) -> None:
    with listener(address, _PORT, 1000):
        signal.pause()


def main() -> None:
    parser = argparse.ArgumentParser(description="Churn sockets of protocol 257.")
    actions = {"cycles": cycles, "kills": kills, "modules": modules, "hoard": hoard}
    parser.add_argument("action", choices=list(actions))
    parser.add_argument("--address", required=True, help="of the server")
    parser.add_argument("--server", type=int, default=0, help="a process in the server's host")
    parser.add_argument("--client", type=int, default=0, help="a process in the client's host")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--longest", type=float, default=1.0, help="seconds until a kill")
    parser.add_argument("--module", help="the module's file")
    options = parser.parse_args()
    try:
        print(json.dumps(actions[options.action](options)))
    except (Trouble, OSError, subprocess.CalledProcessError) as e:
        sys.exit(f"{options.action}, seed {options.seed}: {e}")


if __name__ == "__main__":
    main()
