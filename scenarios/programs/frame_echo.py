"""Echoes frames over SMB-Direct sockets. Runs in a machine, with its plain Python.

A frame is SMB's: 4 bytes of length, big-endian, and that many bytes. The server answers each frame
with itself. Every command prints one line of JSON, or says what went wrong and exits with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from typing import Any

IPPROTO_SMBDIRECT = 257
_HEADER = struct.Struct(">I")
_CHUNK = 256 * 1024
_PATIENCE = 30.0
"""Seconds without any progress after which a connection is given up."""
_HANG_UP_AFTER = 3 << 20
"""Bytes that a server of the style ``hangup`` reads of a client's stream."""


def open_socket(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.socket(family, socket.SOCK_STREAM, IPPROTO_SMBDIRECT)


def frame(payload: bytes) -> bytes:
    return _HEADER.pack(len(payload)) + payload


def receive(connection: socket.socket, size: int) -> bytes:
    """Exactly ``size`` bytes, or fewer at the end of the stream."""
    got = bytearray()
    while len(got) < size:
        piece = connection.recv(min(size - len(got), _CHUNK))
        if not piece:
            break
        got += piece
    return bytes(got)


# Clients.


def connect_blocking(address: str, port: int) -> socket.socket:
    connection = open_socket(address)
    connection.connect((address, port))
    return connection


def connect_epoll(address: str, port: int) -> socket.socket:
    """Connect without blocking; the result comes from epoll and SO_ERROR, as in Samba."""
    connection = open_socket(address)
    connection.setblocking(False)
    status = connection.connect_ex((address, port))
    if status == errno.EINPROGRESS:
        with select.epoll() as poll:
            poll.register(connection, select.EPOLLOUT)
            if not poll.poll(_PATIENCE):
                raise TimeoutError(errno.ETIMEDOUT, "connect never ended")
        status = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if status:
        raise OSError(status, os.strerror(status))
    return connection


def exchange_blocking(connection: socket.socket, payloads: list[bytes]) -> list[bytes]:
    """One frame after the other: send it, wait for the answer."""
    answers = []
    for payload in payloads:
        connection.sendall(frame(payload))
        (size,) = _HEADER.unpack(receive(connection, _HEADER.size))
        answers.append(receive(connection, size))
    return answers


def exchange_epoll(connection: socket.socket, payloads: list[bytes]) -> list[bytes]:
    """All frames at once: send while answers come, as far as either is possible."""
    left = memoryview(b"".join(frame(p) for p in payloads))
    size = len(left)
    got = bytearray()
    with select.epoll() as poll:
        poll.register(connection, select.EPOLLIN | select.EPOLLOUT)
        while len(got) < size:
            ready = poll.poll(_PATIENCE)
            if not ready:
                raise TimeoutError(errno.ETIMEDOUT, f"{len(left)} bytes unsent, {len(got)} back")
            ((_, events),) = ready
            if events & select.EPOLLIN:
                piece = connection.recv(_CHUNK)
                if not piece:
                    raise EOFError(f"end of stream after {len(got)} of {size} bytes")
                got += piece
            if events & select.EPOLLOUT and left:
                left = left[connection.send(left[:_CHUNK]) :]
                if not left:
                    poll.modify(connection, select.EPOLLIN)
            if events & select.EPOLLERR:
                status = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                raise OSError(status, os.strerror(status))
    return split(bytes(got))


def split(stream: bytes) -> list[bytes]:
    """The payloads of the frames in a stream."""
    payloads = []
    at = 0
    while at < len(stream):
        (size,) = _HEADER.unpack_from(stream, at)
        payloads.append(stream[at + _HEADER.size : at + _HEADER.size + size])
        at += _HEADER.size + size
    return payloads


_STYLES = {
    "blocking": (connect_blocking, exchange_blocking),
    "epoll": (connect_epoll, exchange_epoll),
}


def call(options: argparse.Namespace) -> dict[str, Any]:
    """Send random frames of one or more sizes; say what was sent and what came back."""
    connect, exchange = _STYLES[options.style]
    begun = time.monotonic()
    connection = connect(options.address, options.port)
    seconds = time.monotonic() - begun
    sizes: dict[str, Any] = {}
    for size in options.sizes:
        sent = [os.urandom(size) for _ in range(options.count)]
        received = exchange(connection, sent)
        sizes[str(size)] = {
            "sent": [hashlib.sha256(p).hexdigest() for p in sent],
            "received": [hashlib.sha256(p).hexdigest() for p in received],
            "lengths": [len(p) for p in received],
        }
    protocol = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
    connection.close()
    return {"protocol": protocol, "connect_seconds": seconds, "sizes": sizes}


def connect(options: argparse.Namespace) -> dict[str, Any]:
    """Only connect, in every style at once; say how that ended and how long it took."""
    results: dict[str, Any] = {}

    def attempt(style: str) -> None:
        begun = time.monotonic()
        result = "connected"
        try:
            _STYLES[style][0](options.address, options.port).close()
        except OSError as e:
            result = errno.errorcode.get(e.errno or 0, str(e))
        results[style] = {"result": result, "seconds": time.monotonic() - begun}

    threads = [threading.Thread(target=attempt, args=(style,)) for style in _STYLES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def stream(options: argparse.Namespace) -> dict[str, Any]:
    """Send frames until the peer is gone; say what send and recv returned then."""
    connection = connect_blocking(options.address, options.port)
    payload = frame(os.urandom(options.sizes[0]))
    sent = 0
    send_result = "sent all"
    begun = time.monotonic()
    try:
        while time.monotonic() < begun + _PATIENCE:
            sent += connection.send(payload)
    except OSError as e:
        send_result = errno.errorcode.get(e.errno or 0, str(e))
    seconds = time.monotonic() - begun
    received = 0
    try:
        while piece := connection.recv(_CHUNK):
            received += len(piece)
        receive_result = "end of stream"
    except OSError as e:
        receive_result = errno.errorcode.get(e.errno or 0, str(e))
    return {
        "sent": sent,
        "send": send_result,
        "received": received,
        "recv": receive_result,
        "seconds": seconds,
    }


def leave(options: argparse.Namespace) -> dict[str, Any]:
    """Close in the middle of a frame; then send a frame as the next client."""
    connection = connect_blocking(options.address, options.port)
    payload = frame(os.urandom(options.sizes[0]))
    connection.sendall(payload + payload[: len(payload) // 2])
    echoed = len(receive(connection, len(payload)))
    connection.close()
    return {"echoed": echoed, "next": call(options)}


# Server.


def serve_blocking(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while len(header := receive(connection, _HEADER.size)) == _HEADER.size:
            (size,) = _HEADER.unpack(header)
            payload = receive(connection, size)
            if len(payload) < size:
                break
            connection.sendall(header + payload)


def serve_hangup(listener: socket.socket) -> None:
    """Answer nothing; hang up in the middle of a client's stream."""
    while True:
        connection, _ = listener.accept()
        with connection:
            receive(connection, _HANG_UP_AFTER)


def serve_epoll(listener: socket.socket) -> None:
    """One thread for all connections; whole frames are echoed, in the order they came."""
    listener.setblocking(False)
    peers: dict[int, tuple[socket.socket, bytearray, bytearray]] = {}
    with select.epoll() as poll:
        poll.register(listener, select.EPOLLIN)
        while True:
            for number, events in poll.poll():
                if number == listener.fileno():
                    with contextlib.suppress(BlockingIOError):
                        connection, _peer = listener.accept()
                        connection.setblocking(False)
                        peers[connection.fileno()] = (connection, bytearray(), bytearray())
                        poll.register(connection, select.EPOLLIN)
                    continue
                connection, incoming, outgoing = peers[number]
                if not _serve_one(connection, incoming, outgoing, events):
                    poll.unregister(connection)
                    connection.close()
                    del peers[number]
                    continue
                poll.modify(connection, select.EPOLLIN | (select.EPOLLOUT if outgoing else 0))


def _serve_one(
    connection: socket.socket, incoming: bytearray, outgoing: bytearray, events: int
) -> bool:
    """Do what is possible for one connection; False when it has ended."""
    try:
        if events & ~select.EPOLLOUT:
            piece = connection.recv(_CHUNK)
            if not piece:
                return False
            incoming += piece
            while len(incoming) >= _HEADER.size:
                size = _HEADER.size + _HEADER.unpack_from(incoming)[0]
                if len(incoming) < size:
                    break
                outgoing += incoming[:size]
                del incoming[:size]
        if outgoing:
            del outgoing[: connection.send(outgoing[:_CHUNK])]
    except BlockingIOError:
        pass
    except OSError:
        return False
    return True


_SERVERS = {"blocking": serve_blocking, "epoll": serve_epoll, "hangup": serve_hangup}


def serve(options: argparse.Namespace) -> None:
    """Listen on all of ADDRESS,PORT,STYLE; print one line as soon as clients can connect."""
    threads = []
    for listen in options.listen:
        address, port, style = listen.split(",")
        listener = open_socket(address)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, int(port)))
        listener.listen(16)
        threads.append(threading.Thread(target=_SERVERS[style], args=(listener,), daemon=True))
    for thread in threads:
        thread.start()
    print(json.dumps({"listening": options.listen}), flush=True)
    for thread in threads:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description="Echo frames over SMB-Direct sockets.")
    actions = parser.add_subparsers(dest="action", required=True)
    server = actions.add_parser("serve", help=serve.__doc__)
    server.add_argument("listen", nargs="+", metavar="ADDRESS,PORT,STYLE")
    server.set_defaults(do=serve)
    for do in (call, connect, stream, leave):
        client = actions.add_parser(do.__name__, help=do.__doc__)
        client.add_argument("address")
        client.add_argument("port", type=int)
        client.add_argument("--style", choices=list(_STYLES), default="blocking")
        client.add_argument("--sizes", type=int, nargs="+", default=[65536])
        client.add_argument("--count", type=int, default=1, help="frames of each size")
        client.set_defaults(do=do)
    options = parser.parse_args()
    try:
        if (result := options.do(options)) is not None:
            print(json.dumps(result))
    except (OSError, EOFError) as e:
        sys.exit(f"{options.action}: {e!r}")


if __name__ == "__main__":
    main()
