"""Readers that pause while their peer has more to send. Runs in a machine, plain Python.

The client says in its first frame what is to happen. Every client command prints one line of
JSON. ``smbdirect.py`` beside this file is the testbed's ``socket.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smbdirect_testbed import smbdirect
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import smbdirect

import frames
from frames import digest, frame, name, receive

_BULK = 6 << 20
"""More than all receive buffers of a connection hold."""
_FRAME = 65536
_SLOWLY = 40960
"""Bytes that a slow reader takes at once."""


def stream(seed: int) -> bytes:
    data = random.Random(seed).randbytes(_BULK)
    return b"".join(frame(data[i : i + _FRAME]) for i in range(0, _BULK, _FRAME))


_STREAM = stream(1)


def read_all(connection: socket.socket, left: int = len(_STREAM)) -> str:
    """Read so many bytes; their digest, or how the connection ended before."""
    got = hashlib.sha256()
    try:
        while left and (data := connection.recv(min(left, 1 << 20))):
            got.update(data)
            left -= len(data)
    except OSError as e:
        return f"{name(e)}, {left} bytes missing"
    return f"end of stream, {left} bytes missing" if left else got.hexdigest()


def send_all(connection: socket.socket) -> str:
    return frames.outcome(lambda: connection.sendall(_STREAM))


# Server.

_seen: list[str] = []


def read_slowly(connection: socket.socket, pause: float, rounds: int) -> str:
    """Take little at a time, and then the rest; a digest of all, or how it ended."""
    time.sleep(pause)
    got, left = hashlib.sha256(), len(_STREAM)
    try:
        for _ in range(rounds):
            data = connection.recv(_SLOWLY, socket.MSG_WAITALL)
            got.update(data)
            left -= len(data)
            time.sleep(pause)
        while data := connection.recv(1 << 20):
            got.update(data)
            left -= len(data)
    except OSError as e:
        return f"{name(e)}, {left} bytes missing"
    return got.hexdigest()


def serve_one(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        request = json.loads(receive(connection))
        pause = request["pause"]
        if request["do"] == "read":
            time.sleep(pause)
            connection.sendall(frame(read_all(connection).encode()))
        elif request["do"] == "write":
            send_all(connection)
            receive(connection)
        elif request["do"] == "both":
            sender = threading.Thread(target=send_all, args=[connection])
            sender.start()
            time.sleep(pause)
            result = read_all(connection)
            sender.join()
            connection.sendall(frame(result.encode()))
        elif request["do"] == "slow":
            _seen.append(read_slowly(connection, pause, request["rounds"]))
        elif request["do"] == "seen":
            frames.until(lambda: bool(_seen), 60)
            connection.sendall(frame(_seen.pop().encode()))


def serve(options: argparse.Namespace) -> None:
    """Serve clients until killed."""
    with smbdirect.smbdirect_socket(parameters=parameters(options)) as listener:
        frames.serve(listener, (options.address, options.port), serve_one)


# Clients.


def parameters(options: argparse.Namespace) -> smbdirect.ConnectionParameters:
    return smbdirect.ConnectionParameters(
        keepalive_interval_ms=options.keepalive, keepalive_timeout_ms=options.keepalive // 2
    )


def connect(options: argparse.Namespace, do: str, **more: Any) -> socket.socket:
    connection = smbdirect.smbdirect_socket(parameters=parameters(options))
    connection.connect((options.address, options.port))
    request = {"do": do, "pause": options.pause, "rounds": options.rounds, **more}
    connection.sendall(frame(json.dumps(request).encode()))
    return connection


def there(options: argparse.Namespace) -> dict[str, Any]:
    """The server pauses before it reads."""
    with connect(options, "read") as connection:
        sent = send_all(connection)
        return {"sent": sent, "same": receive(connection).decode() == digest(_STREAM)}


def here(options: argparse.Namespace) -> dict[str, Any]:
    """This side pauses before it reads."""
    with connect(options, "write") as connection:
        time.sleep(options.pause)
        got = read_all(connection)
        return {"same": got == digest(_STREAM) or got}


def both(options: argparse.Namespace) -> dict[str, Any]:
    """Both sides send, and pause before they read; meanwhile nobody is busy."""
    with connect(options, "both") as connection:
        sender = threading.Thread(target=send_all, args=[connection])
        sender.start()
        time.sleep(options.pause)
        got = read_all(connection)
        sender.join()
        theirs = receive(connection).decode()
    wanted = digest(_STREAM)
    return {"here": got == wanted or got, "there": theirs == wanted or theirs}


def closed(options: argparse.Namespace) -> dict[str, Any]:
    """Write, close at once, and have the server read slowly what was written."""
    connection = connect(options, "slow")
    sent = send_all(connection)
    connection.close()
    with connect(options, "seen") as connection:
        got = receive(connection).decode()
    return {"sent": sent, "seen": got == digest(_STREAM) or got}


def stopped(options: argparse.Namespace) -> dict[str, Any]:
    """A process that reads is stopped, and goes on after the pause."""
    argv = [sys.executable, "-I", __file__, "here", options.address, str(options.port)]
    argv += ["--keepalive", str(options.keepalive), "--pause", "6"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as reader:
        time.sleep(4)  # it is connected, and what its peer sends has arrived
        os.kill(reader.pid, signal.SIGSTOP)
        time.sleep(options.pause)
        os.kill(reader.pid, signal.SIGCONT)
        result: dict[str, Any] = json.loads(reader.communicate(timeout=60)[0])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Readers that pause.")
    actions = parser.add_subparsers(dest="action", required=True)
    for do in (serve, there, here, both, closed, stopped):
        action = actions.add_parser(do.__name__, help=do.__doc__)
        action.add_argument("address")
        action.add_argument("port", type=int)
        action.add_argument("--keepalive", type=int, default=0, metavar="MS")
        action.add_argument("--pause", type=float, default=0)
        action.add_argument("--rounds", type=int, default=0)
        action.set_defaults(do=do)
    options = parser.parse_args()
    result = options.do(options)
    if result is not None:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
