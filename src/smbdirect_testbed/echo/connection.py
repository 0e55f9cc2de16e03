"""Connections that carry frames, over SMB-Direct or TCP.

A frame is what SMB has on a stream: 4 bytes of length, big-endian, and that many bytes.
"""

from __future__ import annotations

import errno
import socket
import struct
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from smbdirect_testbed.smbdirect import ConnectionParameters

IPPROTO_SMBDIRECT = 257
DEFAULT_PORTS = {"smbdirect": 5446, "tcp": 5447}
"""One above the other: a soft-iWARP device has the ports of TCP."""

_LENGTH = struct.Struct(">I")
_TIMEVAL = struct.Struct("@ll")
_JOINED = 64 * 1024
"""A frame up to this many bytes goes out in one piece, larger ones are not copied for that."""


class Transport(StrEnum):
    """How frames travel."""

    SMBDIRECT = "smbdirect"
    TCP = "tcp"


class Disconnected(Exception):
    """The peer ended the connection, or it broke.

    :param within_frame: whether that was in the middle of a frame
    """

    def __init__(self, why: str, *, within_frame: bool = False) -> None:
        super().__init__(why)
        self.within_frame = within_frame


class Silence(Disconnected):
    """The peer neither answered nor closed in time."""


class FrameTooBig(Exception):
    """The peer announced a frame larger than we take."""


_ENDS = {
    errno.ECONNRESET,
    errno.EPIPE,
    errno.ENOTCONN,
    errno.ECONNABORTED,
    errno.ESHUTDOWN,
    errno.ENETDOWN,
    errno.EBADF,
}
_SILENCE = {errno.EAGAIN, errno.EWOULDBLOCK, errno.ETIMEDOUT}


class Connection:
    """A connected socket that carries frames.

    :param patience: seconds without any progress after which the connection is given up
    """

    def __init__(self, sock: socket.socket, transport: Transport, *, patience: float) -> None:
        self.socket = sock
        self.transport = transport
        self.patience = patience
        sock.setblocking(True)
        # Not settimeout(): that costs a poll() before every call.
        time = _TIMEVAL.pack(int(patience), int(patience % 1 * 1_000_000))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, time)
        if transport is Transport.TCP:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def rdma(self) -> bool:
        """Whether this transport has RDMA."""
        return self.transport is Transport.SMBDIRECT

    def close(self) -> None:
        """Close it, at once."""
        self.socket.close()

    def send(self, *parts: bytes | memoryview) -> None:
        """Send one frame made of parts.

        :raises Disconnected: the connection is gone, or made no progress for too long
        """
        size = sum(len(p) for p in parts)
        try:
            if size <= _JOINED:
                self.socket.sendall(b"".join((_LENGTH.pack(size), *parts)))
                return
            self.socket.sendall(b"".join((_LENGTH.pack(size), *parts[:-1])))
            self.socket.sendall(parts[-1])
        except OSError as e:
            raise self.lost(e, "sending") from e

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are, frame or not.

        :raises Disconnected: the connection is gone, or made no progress for too long
        """
        try:
            self.socket.sendall(data)
        except OSError as e:
            raise self.lost(e, "sending") from e

    def receive(self, most: int) -> memoryview:
        """The next frame.

        :param most: the most bytes that it may have
        :raises FrameTooBig: it has more
        :raises Disconnected: there is none
        """
        (size,) = _LENGTH.unpack(self._exactly(_LENGTH.size, within_frame=False))
        if size > most:
            raise FrameTooBig(f"a frame of {size} bytes, {most} are taken")
        return self._exactly(size, within_frame=True)

    def _exactly(self, size: int, *, within_frame: bool) -> memoryview:
        buffer = memoryview(bytearray(size))
        at = 0
        while at < size:
            try:
                got = self.socket.recv_into(buffer[at:])
            except OSError as e:
                raise self.lost(e, "receiving", within_frame=within_frame or at > 0) from e
            if not got:
                raise Disconnected("the peer closed", within_frame=within_frame or at > 0)
            at += got
        return buffer

    def lost(self, error: OSError, what: str, *, within_frame: bool = False) -> Exception:
        """What an error of the socket means; itself, if it is not about the connection."""
        if error.errno in _ENDS:
            return Disconnected(f"{what}: {error.strerror}", within_frame=within_frame)
        if error.errno in _SILENCE:
            return Silence(f"{what}: no progress in {self.patience:g} s", within_frame=within_frame)
        return error


def frame(body: bytes) -> bytes:
    """A frame as bytes."""
    return _LENGTH.pack(len(body)) + body


def open_socket(
    address: str, transport: Transport, parameters: ConnectionParameters | None = None
) -> socket.socket:
    """A socket for an address of either family.

    :param parameters: of the SMB-Direct connection; None for the module's defaults
    :raises OSError: no such protocol in this kernel: the module is not loaded
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if transport is Transport.TCP:
        return socket.socket(family, socket.SOCK_STREAM)
    if parameters is None:
        return socket.socket(family, socket.SOCK_STREAM, IPPROTO_SMBDIRECT)
    # Only then, so that all else works with a module that knows no parameters.
    from smbdirect_testbed.smbdirect import smbdirect_socket

    return smbdirect_socket(family, parameters)


def connect(
    address: str,
    port: int,
    transport: Transport,
    *,
    patience: float = 30.0,
    parameters: ConnectionParameters | None = None,
) -> Connection:
    """Connect to a server.

    :raises OSError: that failed; says whereto
    """
    try:
        sock = open_socket(address, transport, parameters)
        try:
            sock.connect((address, port))
            return Connection(sock, transport, patience=patience)
        except BaseException:
            sock.close()
            raise
    except OSError as e:
        text = e.strerror or str(e)
        where = f"{address} port {port} over {transport}"
        raise OSError(e.errno, f"cannot connect to {where}: {text}") from e


def listen(
    address: str,
    port: int,
    transport: Transport,
    parameters: ConnectionParameters | None = None,
) -> socket.socket:
    """A listening socket that does not block.

    :raises OSError: that failed; says where
    """
    try:
        sock = open_socket(address, transport, parameters)
        try:
            if transport is Transport.TCP:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if sock.family == socket.AF_INET6:
                    # As SMB-Direct has it: :: is IPv6 only.
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, port))
            sock.listen(32)
            sock.setblocking(False)
            return sock
        except BaseException:
            sock.close()
            raise
    except OSError as e:
        text = e.strerror or str(e)
        where = f"{address} port {port} over {transport}"
        raise OSError(e.errno, f"cannot listen on {where}: {text}") from e
