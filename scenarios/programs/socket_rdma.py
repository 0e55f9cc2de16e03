"""RDMA between userspace programs over SMB-Direct sockets. Runs in a machine, plain Python.

The client registers memory and asks the server, in frames of JSON, to read or write it. Every
client command prints one line of JSON. ``smbdirect.py`` beside this file is the testbed's
``socket.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import resource
import select
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smbdirect_testbed import smbdirect as smbdirect
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import smbdirect

import frames
from frames import digest, limit, name


def pattern(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def frame(message: dict[str, Any]) -> bytes:
    return frames.frame(json.dumps(message).encode())


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next frame, None at the end of the stream."""
    data = frames.receive(connection)
    message: dict[str, Any] | None = json.loads(data) if data else None
    return message


# Server.


def transfer(connection: socket.socket, request: dict[str, Any]) -> dict[str, Any]:
    """Do what a client asks for; say what came of it."""
    descriptors = [smbdirect.Descriptor(*d) for d in request["descriptors"]]
    length = request["length"]
    try:
        if request["do"] == "read":
            data = bytearray(length)
            half = length // 2
            pieces = [memoryview(data)[:half], memoryview(data)[half:]]
            done = smbdirect.rdma_readv(connection, descriptors, pieces)
        elif request["do"] == "write":
            data = bytearray(pattern(request["seed"], length))
            half = length // 2
            pieces = [memoryview(data)[:half], memoryview(data)[half:]]
            done = smbdirect.rdma_writev(connection, descriptors, pieces)
        elif request["do"] == "register":
            smbdirect.rdma_register(connection, bytearray(length), remote_write=True)
            return {"error": None}
        else:
            return {"error": None}
    except OSError as e:
        return {"error": name(e)}
    return {"error": None, "bytes": done, "digest": digest(data)}


def serve_one(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while request := receive(connection):
            answer = frame(transfer(connection, request))
            if token := request.get("invalidate"):
                sent = smbdirect.send_with_invalidate(connection, answer, token)
                answer = answer[sent:]
            connection.sendall(answer)


def serve(options: argparse.Namespace) -> None:
    """Serve clients until killed."""
    parameters = smbdirect.ConnectionParameters(max_read_write_size=options.max_read_write)
    with smbdirect.smbdirect_socket(parameters=parameters) as listener:
        frames.serve(listener, (options.address, options.port), serve_one)


# Clients.


def connect(options: argparse.Namespace, **wanted: int) -> socket.socket:
    connection = smbdirect.smbdirect_socket(parameters=smbdirect.ConnectionParameters(**wanted))
    limit(connection)
    connection.connect((options.address, options.port))
    return connection


def ask(connection: socket.socket, what: str, **arguments: Any) -> dict[str, Any]:
    """A request to the server, and its answer, or how the connection ended."""
    try:
        connection.sendall(frame({"do": what, **arguments}))
        return receive(connection) or {"error": "end of stream"}
    except OSError as e:
        return {"error": name(e)}


def transfers(options: argparse.Namespace) -> dict[str, Any]:
    """Let the server read and write memory of many sizes, page-aligned and not."""
    results: dict[str, Any] = {}
    with connect(options) as connection:
        for size in options.sizes:
            for offset in (0, 13):
                memory = mmap.mmap(-1, size + offset)
                view = memoryview(memory)[offset:]
                view[:] = pattern(size, size)
                before = digest(view)
                with smbdirect.rdma_register(connection, view, remote_write=False) as region:
                    read = ask(connection, "read", descriptors=region.descriptors, length=size)
                with smbdirect.rdma_register(connection, view, remote_write=True) as region:
                    written = ask(
                        connection,
                        "write",
                        descriptors=region.descriptors,
                        length=size,
                        seed=size + 1,
                    )
                results[f"{size}+{offset}"] = {
                    "registered": len(region.descriptors),
                    "offset": max(d.offset for d in region.descriptors),
                    "sent": before,
                    "read": read,
                    "written": written,
                    "arrived": digest(view),
                }
    return results


def invalidate(options: argparse.Namespace) -> dict[str, Any]:
    """The server ends a registration with its answer; then nobody may use it any more."""
    with connect(options) as connection:
        memory = bytearray(pattern(1, 65536))
        region = smbdirect.rdma_register(connection, memory, remote_write=False)
        (descriptor,) = region.descriptors
        first = ask(
            connection,
            "read",
            descriptors=[descriptor],
            length=65536,
            invalidate=descriptor.token,
        )
        region.close()
        again = smbdirect.rdma_register(connection, memory, remote_write=False)
        second = ask(connection, "read", descriptors=again.descriptors, length=65536)
        # This one is invalidated, and used nevertheless.
        (descriptor,) = again.descriptors
        ask(connection, "nothing", descriptors=[], length=0, invalidate=descriptor.token)
        third = ask(connection, "read", descriptors=[descriptor], length=65536)
    return {"sent": digest(memory), "first": first, "second": second, "third": third}


def forbidden(options: argparse.Namespace) -> dict[str, Any]:
    """What the server must not get away with; every attempt has a connection of its own."""
    results: dict[str, Any] = {}
    memory = bytearray(b"x" * 8192)

    def attempt(what: str, case: str, *, remote_write: bool, change: str = "") -> None:
        with connect(options) as connection:
            region = smbdirect.rdma_register(connection, memory, remote_write=remote_write)
            (descriptor,) = region.descriptors
            if change == "token":
                descriptor = descriptor._replace(token=descriptor.token ^ 0x5A5A00)
            elif change == "beyond":
                descriptor = descriptor._replace(length=descriptor.length + 1)
            elif change == "before":
                descriptor = descriptor._replace(offset=descriptor.offset - 1)
            elif change == "deregistered":
                region.close()
            results[case] = ask(
                connection, what, descriptors=[descriptor], length=descriptor.length, seed=1
            )

    attempt("write", "write to what may be read", remote_write=False)
    attempt("read", "read what may be written", remote_write=True)
    attempt("read", "wrong token", remote_write=False, change="token")
    attempt("read", "beyond the end", remote_write=False, change="beyond")
    attempt("read", "before the beginning", remote_write=False, change="before")
    attempt("write", "after the end", remote_write=True, change="deregistered")
    results["untouched"] = memory == b"x" * 8192
    return results


def limits(options: argparse.Namespace) -> dict[str, Any]:
    """What is refused, and that it does no harm: the connection works at the end."""
    results: dict[str, Any] = {}

    def refused(case: str, function: Any, *arguments: Any, **named: Any) -> None:
        results[case] = frames.outcome(partial(function, *arguments, **named))

    def register(memory: memoryview, on: socket.socket | None = None) -> Any:
        return smbdirect.rdma_register(on or connection, memory, remote_write=True)

    connection = connect(options, responder_resources=4)
    page = mmap.mmap(-1, 65536)
    held: list[Any] = []
    with contextlib.suppress(OSError):
        while len(held) < 100:
            held.append(register(memoryview(page)))
    results["registrations"] = len(held)
    refused("one more", register, memoryview(page))
    region = held.pop()
    smbdirect.rdma_deregister(connection, region)
    refused("one again", register, memoryview(page))
    refused("no memory", register, memoryview(b""))
    buffer = memoryview(bytearray(4096))
    descriptor = smbdirect.Descriptor(0, 1, 4096)
    refused("client reads", smbdirect.rdma_readv, connection, [descriptor], [buffer])
    refused("client writes", smbdirect.rdma_writev, connection, [descriptor], [buffer])
    refused("no descriptors", smbdirect.rdma_readv, connection, [], [buffer])
    refused("too many", smbdirect.rdma_readv, connection, [descriptor] * 257, [buffer])
    longer = memoryview(bytearray(4097))
    refused("too short", smbdirect.rdma_readv, connection, [descriptor], [longer])
    last = descriptor._replace(offset=(1 << 64) - 1)
    refused("wraps around", smbdirect.rdma_readv, connection, [last], [buffer])
    unconnected = smbdirect.smbdirect_socket()
    refused("unconnected", register, memoryview(page), unconnected)
    refused("urgent data", connection.send, b"x", socket.MSG_OOB)
    refused("no result", connection.recv, 1, socket.MSG_OOB)
    unknown = [(smbdirect.SOL_SMBDIRECT, 77, b"")]
    refused("unknown request", connection.sendmsg, [b"x"], unknown, socket.MSG_OOB)
    connection.send(b"\0\0")
    refused("in mid frame", smbdirect.send_with_invalidate, connection, b"\0\0\0\1x", 1)
    connection.send(b"\0\0")
    refused("empty frame", smbdirect.send_with_invalidate, connection, b"\0\0\0\0", 1)
    results["server registers"] = ask(connection, "register", descriptors=[], length=4096)
    big = mmap.mmap(-1, 9 << 20)
    for held_region in held:
        held_region.close()
    held.clear()
    connection.close()

    with connect(options, responder_resources=16) as connection:
        with smbdirect.rdma_register(connection, memoryview(big), remote_write=True) as region:
            results["too large"] = ask(
                connection, "write", descriptors=region.descriptors, length=9 << 20, seed=1
            )
        memory = bytearray(4096)
        with smbdirect.rdma_register(connection, memory, remote_write=True) as region:
            results["after all"] = ask(
                connection, "write", descriptors=region.descriptors, length=4096, seed=2
            )
        results["arrived"] = digest(memory)
    return results


def child(work: Callable[[], str]) -> str:
    """What comes of some work in a process of its own, which ends at once."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(theirs, work().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(theirs)
    with os.fdopen(ours, encoding="ascii") as answer:
        return answer.read()


def memlock(options: argparse.Namespace) -> dict[str, Any]:
    """As a user who may lock 64 KiB: that is his limit, whatever his processes do."""
    results: dict[str, Any] = {}
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    os.setuid(65531)
    connection = connect(options)
    memory = memoryview(mmap.mmap(-1, 131072))
    held: list[smbdirect.Registration] = []

    def register(size: int) -> str:
        def work() -> None:
            held.append(smbdirect.rdma_register(connection, memory[:size], remote_write=True))

        return frames.outcome(work)

    results["too much"] = register(131072)
    results["half"] = register(32768)
    results["all"] = register(32768)
    results["more"] = register(4096)
    held.pop().close()
    results["given back"] = register(32768)
    held.pop().close()
    # What a child registers on the connection outlives the child.
    children = [child(partial(register, 32768)) for _ in range(4)]
    results["children"] = children
    connection.close()
    connection = connect(options)
    closed = frames.until(lambda: register(65536) == "ok")
    results["closed"] = "ok" if closed else "never"
    held.pop().close()
    try:
        constant = mmap.mmap(-1, 4096, prot=mmap.PROT_READ)
        with connect(options) as connection:
            raw = smbdirect._REQUEST.pack(1, 0)
            smbdirect._operate(connection, smbdirect._RDMA_REGISTER, raw, [memoryview(constant)])
        results["read-only"] = "accepted"
    except OSError as e:
        results["read-only"] = name(e)
    return results


def events(options: argparse.Namespace) -> dict[str, Any]:
    """Without blocking: operations are queued, and their results announced by EPOLLPRI."""
    results: dict[str, Any] = {}
    with connect(options) as connection, select.epoll() as poll:
        connection.setblocking(False)
        poll.register(connection, select.EPOLLPRI)
        results["idle"] = poll.poll(0.1)
        memory = memoryview(bytearray(4096))
        for cookie in range(1000):
            request = smbdirect._COOKIE.pack(cookie) + smbdirect._REQUEST.pack(1, 0)
            try:
                control = [(smbdirect.SOL_SMBDIRECT, smbdirect._RDMA_REGISTER, request)]
                connection.sendmsg([memory], control, socket.MSG_OOB)
            except OSError as e:
                results["refused"] = name(e)
                break
        results["queued"] = cookie
        results["ready"] = bool(poll.poll(0) and poll.poll(0)[0][1] & select.EPOLLPRI)
        try:
            connection.recvmsg(1, 10, socket.MSG_OOB)
        except OSError as e:
            results["no room"] = name(e)
        space = socket.CMSG_SPACE(smbdirect._COMPLETION.size)
        peeked = connection.recvmsg(1, space, socket.MSG_OOB | socket.MSG_PEEK)[1][0][2]
        cookies: list[int] = []
        tokens: set[int] = set()
        try:
            while True:
                _, ((_, _, data),), flags, _ = connection.recvmsg(1, space, socket.MSG_OOB)
                if not cookies:
                    results["peeked"] = data == peeked and bool(flags & socket.MSG_OOB)
                fields = smbdirect._COMPLETION.unpack(data)
                cookies.append(fields[0])
                tokens.add(smbdirect._DESCRIPTOR.unpack(fields[5])[1])
        except OSError as e:
            results["at the end"] = name(e)
        results["in order"] = cookies == list(range(results["queued"]))
        results["tokens"] = len(tokens)
        results["silent"] = poll.poll(0.1)
    return results


def kill(options: argparse.Namespace) -> dict[str, Any]:
    """A process is killed while the server writes its memory; the next one finds all well."""
    for _ in range(options.count):
        ready, child_ready = os.pipe()
        child = os.fork()
        if not child:
            connection = connect(options)
            memory = mmap.mmap(-1, 8 << 20)
            region = smbdirect.rdma_register(connection, memoryview(memory), remote_write=True)
            for seed in range(1000):
                wanted = {"do": "write", "length": 8 << 20, "seed": seed}
                connection.sendall(frame(wanted | {"descriptors": region.descriptors}))
                if not seed:
                    os.write(child_ready, b"x")
            os._exit(0)
        os.close(child_ready)
        os.read(ready, 1)
        os.close(ready)
        time.sleep(random.uniform(0.0, 0.3))
        os.kill(child, 9)
        os.waitpid(child, 0)
    return transfers(options)


def main() -> None:
    parser = argparse.ArgumentParser(description="RDMA between programs.")
    actions = parser.add_subparsers(dest="action", required=True)
    for do in (serve, transfers, invalidate, forbidden, limits, memlock, events, kill):
        action = actions.add_parser(do.__name__, help=do.__doc__)
        action.add_argument("address")
        action.add_argument("port", type=int)
        action.add_argument("--sizes", type=int, nargs="+", default=[65536])
        action.add_argument("--count", type=int, default=5)
        action.add_argument("--max-read-write", type=int, default=0)
        action.set_defaults(do=do)
    options = parser.parse_args()
    result = options.do(options)
    if result is not None:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
