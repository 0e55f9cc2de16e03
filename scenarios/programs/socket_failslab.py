"""Allocations that fail, one after the other, in each call of an SMB-Direct socket.

Runs in a machine whose kernel has fault injection, plain Python. The number of the allocation that
is to fail goes up until a call comes through without having reached it. ``smbdirect.py`` beside
this file is the testbed's module for SMB-Direct sockets.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import select
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smbdirect_testbed import smbdirect as smbdirect
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import smbdirect

import frames
from frames import echo, echoed, frame, limit, name

_MOST = 400
"""Allocations that no single call makes."""
_SIZE = 65536


class Failing:
    """The calling thread's allocations, of which the n-th fails."""

    def __init__(self) -> None:
        self._file = os.open("/proc/thread-self/fail-nth", os.O_RDWR)

    def call(self, number: int, work: Callable[[], object]) -> tuple[str, bool]:
        """Do something; ``ok`` or the error, and whether the allocation was reached.

        Between the two writes there is no call but those that are tried.
        """
        os.pwrite(self._file, b"%d" % number, 0)
        try:
            work()
            result = "ok"
        except OSError as e:
            result = name(e)
        reached = os.pread(self._file, 16, 0).strip() == b"0"
        os.pwrite(self._file, b"0", 0)
        return result, reached

    def each(self, attempt: Callable[[int], tuple[str, bool, str]]) -> dict[str, Any]:
        """Let one allocation after the other fail.

        :param attempt: makes the call; what came of it, whether the allocation was reached, and
            ``fine`` or what was wrong afterwards
        """
        results: dict[str, int] = {}
        wrong: list[str] = []
        for number in range(1, _MOST):
            result, reached, after = attempt(number)
            if not reached:
                ended = {"allocations": number - 1, "at_end": result}
                return {**ended, "results": results, "wrong": wrong}
            results[result] = results.get(result, 0) + 1
            if after != "fine":
                wrong.append(f"{number}: {result}, then {after}")
        raise SystemExit(f"one call makes more than {_MOST} allocations")


# Server.


def transfer(
    failing: Failing, connection: socket.socket, request: dict[str, Any]
) -> dict[str, Any]:
    """Read or write the client's memory, as it asks."""
    descriptors = [smbdirect.Descriptor(*d) for d in request["descriptors"]]
    data = memoryview(bytearray(_SIZE))
    if request["do"] == "read":
        work = smbdirect.rdma_readv
    else:
        work = smbdirect.rdma_writev
        data[:] = bytes([request["fail"] % 256]) * _SIZE
    result, reached = failing.call(request["fail"], lambda: work(connection, descriptors, [data]))
    return {"result": result, "reached": reached, "first": data[0], "last": data[-1]}


def serve_one(connection: socket.socket) -> None:
    """Echo frames, and do what those of JSON ask for."""
    failing = Failing()
    with connection, contextlib.suppress(OSError):
        while data := frames.receive(connection):
            if data[:1] == b"{":
                data = json.dumps(transfer(failing, connection, json.loads(data))).encode()
            connection.sendall(frame(data))


def serve(options: argparse.Namespace) -> None:
    """Serve clients until killed."""
    with smbdirect.smbdirect_socket() as listener:
        frames.serve(listener, (options.address, options.port), serve_one)


def serve_accept(options: argparse.Namespace) -> None:
    """Let the allocations of accept() fail, one after the other; then print what came of it.

    What is not accepted for want of memory stays in the queue, or is refused.
    """
    failing = Failing()
    with smbdirect.smbdirect_socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.address, options.port))
        listener.listen(16)
        print(json.dumps({"listening": options.port}), flush=True)

        def attempt(number: int) -> tuple[str, bool, str]:
            found: list[socket.socket] = []
            # A client is there already, so that all that is allocated is accept()'s.
            select.select([listener], [], [])
            result, reached = failing.call(number, lambda: found.append(listener.accept()[0]))
            for connection in found:
                echo(connection)
            return result, reached, "fine"

        print(json.dumps(failing.each(attempt)), flush=True)


# Clients.


def connect(options: argparse.Namespace) -> socket.socket:
    connection = smbdirect.smbdirect_socket()
    limit(connection)
    connection.connect((options.address, options.port))
    return connection


def fail_connect(options: argparse.Namespace) -> dict[str, Any]:
    """socket() and connect()."""
    failing = Failing()

    def attempt(number: int) -> tuple[str, bool, str]:
        made: list[socket.socket] = []

        def work() -> None:
            made.append(connect(options))

        result, reached = failing.call(number, work)
        after = "fine"
        for connection in made:
            with connection:
                said = echoed(connection, 100)
                after = "fine" if said == "echoed" else said
        if not made:
            # It is this connection's failure alone.
            with connect(options) as connection:
                said = echoed(connection, 100)
                after = "fine" if said == "echoed" else said
        return result, reached, after

    return failing.each(attempt)


class Client:
    """A connection to the server, made again when it was lost."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.lost = 0
        self.connection = connect(options)

    def again(self) -> None:
        self.lost += 1
        self.connection.close()
        self.connection = connect(self._options)


def fail_send(options: argparse.Namespace) -> dict[str, Any]:
    """send(): a frame is sent whole, or nothing of it, or the connection ends."""
    failing, client = Failing(), Client(options)
    data = os.urandom(_SIZE)

    def attempt(number: int) -> tuple[str, bool, str]:
        sent: list[int] = []
        whole = frame(data)
        result, reached = failing.call(number, lambda: sent.append(client.connection.send(whole)))
        after = "fine"
        try:
            client.connection.sendall(whole[sent[0] if sent else 0 :])
            if frames.receive(client.connection) != data:
                after = "another frame came back"
        except OSError as e:
            after = "fine" if name(e) in ("ECONNRESET", "EPIPE", "ENOTCONN") else name(e)
            client.again()
        return result, reached, after

    return {**failing.each(attempt), "lost": client.lost}


def fail_recv(options: argparse.Namespace) -> dict[str, Any]:
    """recv(): nothing of the stream is lost."""
    failing, client = Failing(), Client(options)
    data = os.urandom(_SIZE)

    def attempt(number: int) -> tuple[str, bool, str]:
        got: list[bytes] = []
        client.connection.sendall(frame(data))
        result, reached = failing.call(number, lambda: got.append(client.connection.recv(4)))
        after = "fine"
        try:
            header = got[0] if got else client.connection.recv(4, socket.MSG_WAITALL)
            rest = client.connection.recv(_SIZE, socket.MSG_WAITALL)
            if header + rest != frame(data):
                after = "another frame came back"
        except OSError as e:
            after = name(e)
            client.again()
        return result, reached, after

    return {**failing.each(attempt), "lost": client.lost}


def fail_register(options: argparse.Namespace) -> dict[str, Any]:
    """The registration of memory, and its end."""
    failing, client = Failing(), Client(options)
    memory = memoryview(mmap.mmap(-1, _SIZE))

    def attempt(number: int) -> tuple[str, bool, str]:
        def work() -> None:
            smbdirect.rdma_register(client.connection, memory, remote_write=False).close()

        result, reached = failing.call(number, work)
        said = echoed(client.connection, 100)
        if said != "echoed":
            client.again()
            return result, reached, "fine" if said in ("ECONNRESET", "EPIPE") else said
        return result, reached, "fine"

    return {**failing.each(attempt), "lost": client.lost}


def fail_transfer(options: argparse.Namespace) -> dict[str, Any]:
    """An RDMA read or write by the server."""
    client = Client(options)
    memory = memoryview(mmap.mmap(-1, _SIZE))

    def attempt(number: int) -> tuple[str, bool, str]:
        memory[:] = b"m" * _SIZE
        write = options.what == "write"
        with smbdirect.rdma_register(client.connection, memory, remote_write=write) as region:
            request = {"do": options.what, "fail": number, "descriptors": region.descriptors}
            try:
                client.connection.sendall(frame(json.dumps(request).encode()))
                answer = json.loads(frames.receive(client.connection) or b"null")
            except OSError as e:
                answer = {"result": name(e), "reached": True}
        if not answer or "first" not in answer:
            client.again()
            return "connection ended", True, "fine"
        arrived = [memory[0], memory[-1]] if write else [answer["first"], answer["last"]]
        expected = [number % 256] * 2 if write else [ord("m")] * 2
        good = arrived == expected or answer["result"] != "ok"
        return answer["result"], answer["reached"], "fine" if good else f"{arrived} arrived"

    return {**Failing().each(attempt), "lost": client.lost}


def fail_accept(options: argparse.Namespace) -> dict[str, Any]:
    """A client for :func:`serve_accept`, until that has seen enough."""
    refused = 0
    while True:
        try:
            with connect(options) as connection:
                if echoed(connection, 100) != "echoed":
                    refused += 1
        except OSError as e:
            if name(e) == "ECONNREFUSED":
                return {"refused": refused}
            refused += 1


ACTIONS = {
    "serve": serve,
    "serve-accept": serve_accept,
    "connect": fail_connect,
    "accept": fail_accept,
    "send": fail_send,
    "recv": fail_recv,
    "register": fail_register,
    "transfer": fail_transfer,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--what", choices=("read", "write"), default="read")
    options = parser.parse_args()
    result = ACTIONS[options.action](options)
    if result is not None:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
