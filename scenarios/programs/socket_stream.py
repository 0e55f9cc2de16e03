"""What stream sockets do besides send and recv, on SMB-Direct. Runs in a machine, plain Python.

Every case is a function of the client and one of the server; the client names it in its first
frame. Every client command prints one line of JSON. ``smbdirect.py`` beside this file is the
testbed's ``socket.py``.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import fcntl
import hashlib
import json
import os
import select
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smbdirect_testbed import smbdirect as smbdirect
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import smbdirect

import frames
from frames import digest, frame, limit, name, receive

_QUIET = 0.3
"""Seconds in which nothing arrives from a peer that is stuck."""
_BULK = 4 << 20
_FRAME = 65536


def timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))


def waiting(connection: socket.socket) -> int:
    """Bytes that may be read: FIONREAD."""
    answer = fcntl.ioctl(connection, termios.FIONREAD, struct.pack("i", -1))
    (count,) = struct.unpack("i", answer)
    return int(count)


def settle(connection: socket.socket) -> None:
    """Wait until no more arrives: the peer is stuck, or has sent all."""
    seen, since = -1, time.monotonic()

    def quiet() -> bool:
        nonlocal seen, since
        if (now := waiting(connection)) != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > _QUIET

    frames.until(quiet)


def wait_for_end(connection: socket.socket) -> None:
    """Wait until the connection is at an end, and read nothing."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    poll.poll(frames.PATIENCE * 1000)


# Cases: what the client does, and what the server does meanwhile.


def iovecs(connection: socket.socket) -> dict[str, Any]:
    """Frames in thousands of buffers of one byte, and the answer into as many."""
    data = os.urandom(10000)
    whole = memoryview(frame(data))
    sent = 0
    while sent < len(whole):
        sent += connection.sendmsg([whole[i : i + 1] for i in range(sent, len(whole))][:1000])
    got = bytearray(len(whole))
    at = 0
    while at < len(got):
        pieces = [memoryview(got)[i : i + 1] for i in range(at, len(got))][:1000]
        count = connection.recvmsg_into(pieces)[0]
        if not count:
            break
        at += count
    return {"sent": digest(whole), "received": digest(got)}


def waitall(connection: socket.socket) -> dict[str, Any]:
    """One read over what arrives in two frames, half a second apart; one that the end cuts."""
    begun = time.monotonic()
    first = connection.recv(2 * (4 + 1000), socket.MSG_WAITALL)
    seconds = time.monotonic() - begun
    connection.sendall(frame(b"go"))
    return {
        "bytes": len(first),
        "seconds": seconds,
        "at the end": len(connection.recv(100000, socket.MSG_WAITALL)),
    }


def serve_waitall(connection: socket.socket) -> None:
    connection.sendall(frame(b"1" * 1000))
    select.select([connection], [], [], 0.5)  # nothing comes
    connection.sendall(frame(b"2" * 1000))
    receive(connection)
    connection.sendall(frame(b"3" * 500))


def peek(connection: socket.socket) -> dict[str, Any]:
    """Looking at data without taking them, over the bounds of messages; FIONREAD."""
    arrived = frames.until(lambda: waiting(connection) >= 4 + 30000)
    count = waiting(connection)
    first = connection.recv(100, socket.MSG_PEEK)
    everything = connection.recv(4 + 30000, socket.MSG_PEEK | socket.MSG_WAITALL)
    after = waiting(connection)
    dropped = connection.recv(4 + 100, socket.MSG_TRUNC)
    left = waiting(connection)
    rest = connection.recv(left, socket.MSG_WAITALL)
    return {
        "arrived": arrived,
        "waiting": count,
        "peeked": everything[:100] == first and len(everything) == 30004,
        "waiting after": after,
        "dropped": len(dropped),
        "left": left,
        "same": rest == everything[104:],
        "nothing": waiting(connection),
    }


def serve_peek(connection: socket.socket) -> None:
    connection.sendall(frame(os.urandom(30000)))
    receive(connection)


def timeouts(connection: socket.socket) -> dict[str, Any]:
    """SO_RCVTIMEO with nothing to read; SO_SNDTIMEO against a peer that reads nothing."""
    results: dict[str, Any] = {}
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(0.3))
    begun = time.monotonic()
    try:
        results["recv"] = len(connection.recv(1))
    except OSError as e:
        results["recv"] = name(e)
    results["recv seconds"] = time.monotonic() - begun
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(0.3))
    data = frame(bytes(_FRAME))
    sent = 0
    while sent < 64 << 20:
        begun = time.monotonic()
        try:
            sent += connection.send(data)
        except OSError as e:
            results["send"] = name(e)
            break
    results["send seconds"] = time.monotonic() - begun
    with select.epoll() as poll:
        poll.register(connection, select.EPOLLOUT)
        results["writable"] = bool(poll.poll(0))
    discard(connection)
    return results


def stuck(connection: socket.socket) -> dict[str, Any]:
    """Send to a peer that reads nothing, until told to stop; then throw away what is left."""
    # As long as the peer has room for more, its device may only be slow.
    limit(connection, 1)
    with contextlib.suppress(BlockingIOError):
        while True:
            connection.sendall(frame(bytes(_FRAME)))
    sys.stdin.read()
    discard(connection)
    return {}


def discard(connection: socket.socket) -> None:
    """Let close() not wait for the peer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def fork(connection: socket.socket) -> dict[str, Any]:
    """A child uses the connection and ends; the parent goes on with it."""
    child = os.fork()
    if not child:
        connection.sendall(frame(b"child"))
        answer = receive(connection)
        connection.close()
        os._exit(answer != b"child")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(frame(b"parent"))
    return {"child": status, "parent": receive(connection).decode()}


def rights(connection: socket.socket) -> dict[str, Any]:
    """The descriptor goes to another process by SCM_RIGHTS; the first closes its own."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        connection.close()
        ours.close()
        _, control, _, _ = theirs.recvmsg(1, socket.CMSG_SPACE(4))
        passed = socket.socket(fileno=array.array("i", control[0][2])[0])
        passed.sendall(frame(b"passed on"))
        theirs.sendall(receive(passed))
        os._exit(passed.proto != smbdirect.IPPROTO_SMBDIRECT)
    theirs.close()
    descriptor = struct.pack("i", connection.fileno())
    ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)])
    connection.close()
    answer = ours.recv(100).decode()
    return {"answer": answer, "child": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}


def write_close(connection: socket.socket) -> dict[str, Any]:
    """Megabytes are written, the socket closed at once, and the peer reads slowly."""
    data = os.urandom(_BULK)
    stream = b"".join(frame(data[i : i + _FRAME]) for i in range(0, len(data), _FRAME))
    connection.sendall(stream)
    begun = time.monotonic()
    connection.close()
    return {"digest": digest(stream), "close seconds": time.monotonic() - begun}


_closed: list[str] = []


def serve_write_close(connection: socket.socket) -> None:
    """Read slowly, remember what came; last_close asks for it."""
    got = hashlib.sha256()
    settle(connection)
    result = "end of stream"
    try:
        while data := connection.recv(65536):
            got.update(data)
            time.sleep(0.005)  # slowly
    except OSError as e:
        result = name(e)
    _closed.append(f"{got.hexdigest()} {result}")


def last_close(connection: socket.socket) -> dict[str, Any]:
    return {"seen": receive(connection).decode()}


def serve_last_close(connection: socket.socket) -> None:
    frames.until(lambda: bool(_closed))
    connection.sendall(frame(_closed.pop().encode()))


def duplex(connection: socket.socket) -> dict[str, Any]:
    """Both sides send megabytes at once and read late: their credits are soon all used up."""
    return {"mine": both_ways(connection)}


def both_ways(connection: socket.socket) -> str:
    data = os.urandom(_BULK)
    stream = b"".join(frame(data[i : i + _FRAME]) for i in range(0, len(data), _FRAME))
    failed: list[str] = []

    def send() -> None:
        try:
            connection.sendall(stream)
        except OSError as e:
            failed.append(name(e))

    sender = threading.Thread(target=send)
    sender.start()
    got = 0
    settle(connection)
    try:
        while got < len(stream):
            piece = connection.recv(min(65536, len(stream) - got))
            if not piece:
                break
            got += len(piece)
    except OSError as e:
        failed.append(name(e))
    sender.join()
    return failed[0] if failed else "complete" if got == len(stream) else f"{got} bytes"


def serve_duplex(connection: socket.socket) -> None:
    both_ways(connection)


_CASES: dict[str, tuple[Callable[[socket.socket], Any], Callable[[socket.socket], object]]] = {
    "iovecs": (iovecs, frames.echo),
    "waitall": (waitall, serve_waitall),
    "peek": (peek, serve_peek),
    "timeouts": (timeouts, wait_for_end),
    "stuck": (stuck, wait_for_end),
    "fork": (fork, frames.echo),
    "rights": (rights, frames.echo),
    "write_close": (write_close, serve_write_close),
    "last_close": (last_close, serve_last_close),
    "duplex": (duplex, serve_duplex),
}


def serve_one(connection: socket.socket) -> None:
    limit(connection)
    with connection, contextlib.suppress(OSError):
        if case := receive(connection).decode():
            _CASES[case][1](connection)


def serve(options: argparse.Namespace) -> None:
    """Serve clients until killed."""
    parameters = smbdirect.ConnectionParameters(recv_credit_max=options.credits)
    with smbdirect.smbdirect_socket(parameters=parameters) as listener:
        frames.serve(listener, (options.address, options.port), serve_one)


def call(options: argparse.Namespace) -> dict[str, Any]:
    """Do one case."""
    parameters = smbdirect.ConnectionParameters(
        recv_credit_max=options.credits, send_credit_target=options.credits
    )
    with smbdirect.smbdirect_socket(parameters=parameters) as connection:
        limit(connection)
        connection.connect((options.address, options.port))
        connection.sendall(frame(options.case.encode()))
        result: dict[str, Any] = _CASES[options.case][0](connection)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Stream sockets on SMB-Direct.")
    actions = parser.add_subparsers(dest="action", required=True)
    for do in (serve, call):
        action = actions.add_parser(do.__name__, help=do.__doc__)
        action.add_argument("address")
        action.add_argument("port", type=int)
        if do is call:
            action.add_argument("case", choices=list(_CASES))
        action.add_argument("--credits", type=int, default=0)
        action.set_defaults(do=do)
    options = parser.parse_args()
    result = options.do(options)
    if result is not None:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
