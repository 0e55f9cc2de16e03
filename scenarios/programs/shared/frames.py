"""What programs on SMB-Direct sockets have in common. Copied beside them, needs a plain Python.

A frame is SMB's: 4 bytes of length, big-endian, and that many bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

HEADER = struct.Struct(">I")
PATIENCE = 30
"""Seconds that nothing may wait for."""


def name(error: OSError) -> str:
    """An error as ``ECONNRESET``."""
    return errno.errorcode.get(error.errno or 0, str(error))


def digest(data: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def frame(data: bytes) -> bytes:
    return HEADER.pack(len(data)) + data


def receive(connection: socket.socket) -> bytes:
    """The next frame's content; nothing at the end of the stream."""
    header = connection.recv(HEADER.size, socket.MSG_WAITALL)
    if len(header) < HEADER.size:
        return b""
    return connection.recv(HEADER.unpack(header)[0], socket.MSG_WAITALL)


def limit(connection: socket.socket, seconds: float = PATIENCE) -> None:
    """Let nothing wait for longer, and MSG_WAITALL still wait for all."""
    value = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, value)


def until(condition: Callable[[], bool], seconds: float = PATIENCE, interval: float = 0.02) -> bool:
    """Poll until a condition holds; whether it does in the end."""
    deadline = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(interval)
    return held


def references() -> int:
    """How many sockets there are, closed ones that still send included."""
    return int(Path("/sys/module/smbdirect_socket/refcnt").read_text())


def outcome(work: Callable[[], object]) -> str:
    """``ok``, or the error as which something failed."""
    try:
        work()
    except OSError as e:
        return name(e)
    return "ok"


def echo(connection: socket.socket) -> str:
    """Answer each frame with itself; how the connection ended."""
    with connection:
        try:
            while data := receive(connection):
                connection.sendall(frame(data))
        except OSError as e:
            return name(e)
    return "end of stream"


def serve(
    listener: socket.socket,
    address: tuple[str, int],
    work: Callable[[socket.socket], object],
    delay: float = 0,
) -> None:
    """Bind, listen, say so, and have each connection dealt with by a thread; until killed.

    :param delay: seconds that each client waits before it is accepted
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(16)
    print(json.dumps({"listening": address[1]}), flush=True)
    accept_all(listener, work, delay)


def accept_all(
    listener: socket.socket, work: Callable[[socket.socket], object], delay: float = 0
) -> None:
    """Have each connection of a listener dealt with by a thread; until killed."""
    # Who comes and goes during the delay leaves an accept() that waits, with a socket in hand.
    listener.setblocking(not delay)
    while True:
        if delay:
            select.select([listener], [], [])
            time.sleep(delay)
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        threading.Thread(target=work, args=(connection,), daemon=True).start()


def echoed(connection: socket.socket, size: int = 65536) -> str:
    """Send a frame to an echo server; ``echoed``, or what was wrong."""
    data = os.urandom(size)
    try:
        connection.sendall(frame(data))
        answer = receive(connection)
    except OSError as e:
        return name(e)
    return "echoed" if answer == data else f"{len(answer)} other bytes"
