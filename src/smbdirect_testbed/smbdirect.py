"""SMB-Direct sockets (protocol 257) for Python programs: parameters and RDMA.

The data path is that of any stream socket: ``sendall``, ``recv``, ``select`` work as with TCP, on a
stream of frames that each begin with their length in 4 bytes, big-endian. This module adds what
Python's own does not know: the parameters of a connection, and memory that one side registers and
the other reads or writes. ``docs/socket.md`` describes the interface beneath it.

It needs the kernel module ``smbdirect_socket`` and the standard library, nothing of this project:
the single file can be copied to any Linux machine. Functions raise :class:`OSError` with the
kernel's errno; those of interest are named where they occur.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import math
import os
import select
import socket
import struct
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from types import TracebackType
from typing import NamedTuple

__all__ = [
    "IPPROTO_SMBDIRECT",
    "SOL_SMBDIRECT",
    "ConnectionParameters",
    "Descriptor",
    "Registration",
    "connection_parameters",
    "netif_rdma_capable",
    "rdma_deregister",
    "rdma_readv",
    "rdma_register",
    "rdma_writev",
    "send_with_invalidate",
    "smbdirect_socket",
]

IPPROTO_SMBDIRECT = 257
SOL_SMBDIRECT = 289

_PARAMETERS = 1


def _request(number: int, size: int, *, to_kernel: bool = True, to_user: bool = True) -> int:
    """The number that Linux's _IOC macros make of type 'S'; as the signed int of a cmsg_type."""
    value = (to_kernel | to_user << 1) << 30 | size << 16 | ord("S") << 8 | number
    return value - (1 << 32) if value >> 31 else value


_TOKEN = struct.Struct("=I")
_COOKIE = struct.Struct("=Q")
_REQUEST = struct.Struct("=II")
"""What follows the cookie: flags or a token, and 0; or a length and a number of descriptors."""
_DESCRIPTOR = struct.Struct("<QII")
_COMPLETION = struct.Struct("=QIIII16s")
_NETIF = struct.Struct("=16sI")

_REMOTE_INVALIDATE = _request(0x20, _TOKEN.size, to_user=False)
_SIZE = _COOKIE.size + _REQUEST.size
_RDMA_REGISTER = _request(0x21, _SIZE)
_RDMA_DEREGISTER = _request(0x22, _SIZE)
_RDMA_READ = _request(0x23, _SIZE)
_RDMA_WRITE = _request(0x24, _SIZE)
_RDMA_COMPLETION = _request(0x25, _COMPLETION.size, to_kernel=False)
_NETIF_RDMA_CAPABLE = _request(0x26, _NETIF.size)

_REMOTE_WRITE = 1
_PAGE = os.sysconf("SC_PAGESIZE")
_LARGEST = 8 << 20
"""Bytes of one transfer, at most."""


@dataclass(frozen=True, slots=True)
class ConnectionParameters:
    """What a socket asks for before it connects or listens, or what was agreed on since.

    0 asks for the kernel module's default. Sizes are in bytes, times in milliseconds.
    """

    recv_credit_max: int = 0
    """Receive buffers granted to the peer (16 to 1024)."""
    send_credit_target: int = 0
    """Receive buffers asked of the peer (16 to 1024)."""
    max_send_size: int = 0
    """Of one SMB-Direct message with its header (128 to 12288)."""
    max_recv_size: int = 0
    """Likewise, of the peer's messages."""
    max_fragmented_send_size: int = 0
    """Of a frame, without its length (at most 16777215)."""
    max_fragmented_recv_size: int = 0
    """Likewise, of the peer's frames (131072 to 16777215)."""
    max_read_write_size: int = 0
    """Of one RDMA read, RDMA write or registration (a page to 8388608)."""
    connect_timeout_ms: int = 0
    """For the peer to answer a connection request (100 to 120000)."""
    negotiate_timeout_ms: int = 0
    """For the peer to accept and negotiate (100 to 600000)."""
    keepalive_interval_ms: int = 0
    """Silence after which the peer is asked for a sign of life (100 to 600000)."""
    keepalive_timeout_ms: int = 0
    """For that sign of life; then ETIMEDOUT (100 to 120000)."""
    resolve_timeout_ms: int = 0
    """For the resolution of an address, and again of a route (100 to 120000)."""
    initiator_depth: int = 0
    """RDMA reads that may be under way (1 to 128)."""
    responder_resources: int = 0
    """RDMA reads of the peer that may be; there can be twice as many registrations (1 to 128)."""


_PARAMETERS_STRUCT = struct.Struct(f"={len(fields(ConnectionParameters))}I")


class Descriptor(NamedTuple):
    """Memory of the peer: a buffer descriptor V1, [MS-SMBD] 2.2.3.1."""

    offset: int
    token: int
    length: int


# One operation at a time on each socket: their results come back in one queue.
_locks: weakref.WeakKeyDictionary[socket.socket, threading.Lock] = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()
_cookies = itertools.count(1)


def _lock(sock: socket.socket) -> threading.Lock:
    with _locks_guard:
        return _locks.setdefault(sock, threading.Lock())


class Registration:
    """Memory that the peer may access until :meth:`close`; usable with ``with``.

    The buffer stays in memory meanwhile and counts against RLIMIT_MEMLOCK.
    """

    def __init__(self, sock: socket.socket, buffer: memoryview) -> None:
        self._sock = sock
        self._buffer = buffer  # neither freed nor resized while the peer may access it
        self._descriptors: list[Descriptor] = []
        self._open = True

    @property
    def descriptors(self) -> tuple[Descriptor, ...]:
        """To be sent to the peer, in the order of the buffer; one, unless the buffer is large."""
        return tuple(self._descriptors)

    def close(self) -> None:
        """End the peer's access; waits for the device. Nothing if it has ended already."""
        if self._open:
            rdma_deregister(self._sock, self)

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def smbdirect_socket(
    family: int = socket.AF_INET, parameters: ConnectionParameters | None = None
) -> socket.socket:
    """A new socket, with parameters of its own if any are given.

    :raises OSError: EPROTONOSUPPORT: there is no kernel module; EINVAL: a parameter out of range
    """
    sock = socket.socket(family, socket.SOCK_STREAM, IPPROTO_SMBDIRECT)
    if parameters is not None:
        try:
            packed = _PARAMETERS_STRUCT.pack(*astuple(parameters))
            sock.setsockopt(SOL_SMBDIRECT, _PARAMETERS, packed)
        except BaseException as e:
            sock.close()
            if isinstance(e, struct.error):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from e
            raise
    return sock


def connection_parameters(sock: socket.socket) -> ConnectionParameters:
    """What was agreed with the peer; of a socket without one, what it will ask for."""
    packed = sock.getsockopt(SOL_SMBDIRECT, _PARAMETERS, _PARAMETERS_STRUCT.size)
    return ConnectionParameters(*_PARAMETERS_STRUCT.unpack(packed))


def _collect(
    sock: socket.socket, cookie: int, buffers: Sequence[memoryview | bytearray], deadline: float
) -> tuple[int, Descriptor]:
    """The result of an operation: bytes transferred, what was registered."""
    space = socket.CMSG_SPACE(_COMPLETION.size)
    while True:
        try:
            _, control, _, _ = sock.recvmsg_into(buffers, space, socket.MSG_OOB)
        except BlockingIOError:
            _wait(sock, deadline)
            continue
        except OSError as e:
            if e.errno != errno.EMSGSIZE:
                raise
            # Something that was read for a caller who did not wait for it.
            sock.recvmsg_into([bytearray(_LARGEST)], space, socket.MSG_OOB)
            continue
        ((_, _, data),) = control
        whose, _, error, length, _, descriptor = _COMPLETION.unpack(data)
        if whose == cookie:
            break
    if error:
        raise OSError(error, os.strerror(error))
    return length, Descriptor(*_DESCRIPTOR.unpack(descriptor))


def _wait(sock: socket.socket, deadline: float) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLPRI)
    left = deadline - time.monotonic()
    if left <= 0 or not poll.poll(None if left == math.inf else left * 1000):
        raise TimeoutError(errno.ETIMEDOUT, "the RDMA operation has not ended yet")


def _operate(
    sock: socket.socket,
    kind: int,
    request: bytes,
    send: Sequence[memoryview] = (),
    receive: Sequence[memoryview] = (),
) -> tuple[int, Descriptor]:
    """Do one operation and wait for its result, for as long as the socket's timeout allows."""
    timeout = sock.gettimeout()
    deadline = time.monotonic() + timeout if timeout else math.inf
    cookie = next(_cookies)
    with _lock(sock):
        # Python's own sockets wait for the wrong events when they have a timeout.
        plain = socket.socket(sock.family, sock.type, sock.proto, sock.fileno())
        try:
            control = [(SOL_SMBDIRECT, kind, _COOKIE.pack(cookie) + request)]
            plain.sendmsg(send, control, socket.MSG_OOB)
            return _collect(plain, cookie, receive or [bytearray(0)], deadline)
        finally:
            plain.detach()


def _bytes(buffer: memoryview | bytearray | bytes) -> memoryview:
    return memoryview(buffer).cast("B")


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def rdma_register(
    sock: socket.socket, buffer: memoryview | bytearray, *, remote_write: bool
) -> Registration:
    """Let the peer read a buffer, or write it; only on the side that connected.

    :param buffer: writable; need not begin with a page, but shares its first and last with the peer
    :raises OSError: EOPNOTSUPP: this side accepted; ENOMEM: RLIMIT_MEMLOCK; ENOBUFS: as many
        registrations as ``responder_resources`` allows; ENOTCONN, EPIPE: no connection
    """
    view = _bytes(buffer)
    largest = connection_parameters(sock).max_read_write_size
    registration = Registration(sock, view)
    at = 0
    try:
        while at < len(view) or not view:
            # Pages count, not bytes: the first piece ends with a page.
            piece = view[at : at + largest - (_address(view[at:]) % _PAGE if view else 0)]
            request = _REQUEST.pack(_REMOTE_WRITE if remote_write else 0, 0)
            _, descriptor = _operate(sock, _RDMA_REGISTER, request, [piece])
            registration._descriptors.append(descriptor)
            at += len(piece)
    except BaseException:
        registration.close()
        raise
    return registration


def rdma_deregister(sock: socket.socket, registration: Registration) -> None:
    """End the peer's access to a registration; when it returns, the memory is ours alone.

    The end of the connection ends all registrations; that this happened is no error. After any
    other error the memory still belongs to the peer as well, and the call can be repeated.
    """
    # A closed socket's connection is ended, too.
    for descriptor in registration.descriptors if sock.fileno() >= 0 else ():
        try:
            _operate(sock, _RDMA_DEREGISTER, _REQUEST.pack(descriptor.token, 0))
        except OSError as e:
            if e.errno not in (errno.ENOTCONN, errno.EPIPE, errno.ENOENT, errno.EBADF):
                raise
    registration._open = False
    registration._buffer = memoryview(b"")


def _transfer_request(descriptors: Sequence[Descriptor], length: int) -> bytes:
    packed = b"".join(_DESCRIPTOR.pack(*d) for d in descriptors)
    return _REQUEST.pack(length, len(descriptors)) + packed


def rdma_readv(
    sock: socket.socket, descriptors: Sequence[Descriptor], buffers: Sequence[memoryview]
) -> int:
    """Read the peer's memory into buffers until these are full; only on the side that accepted.

    :returns: bytes read
    :raises OSError: EOPNOTSUPP: this side connected; EMSGSIZE: more than ``max_read_write_size``;
        EINVAL: descriptors shorter than the buffers; EIO: the peer does not allow it, which ends
        the connection; ECONNRESET, ENOTCONN: no connection any more
    """
    views = [_bytes(b) for b in buffers]
    request = _transfer_request(descriptors, sum(map(len, views)))
    return _operate(sock, _RDMA_READ, request, receive=views)[0]


def rdma_writev(
    sock: socket.socket, descriptors: Sequence[Descriptor], buffers: Sequence[memoryview]
) -> int:
    """Write buffers to the peer's memory; only on the side that accepted.

    A frame that is sent afterwards arrives after the data.

    :returns: bytes written
    :raises OSError: as :func:`rdma_readv`
    """
    views = [_bytes(b) for b in buffers]
    request = _transfer_request(descriptors, sum(map(len, views)))
    return _operate(sock, _RDMA_WRITE, request, send=views)[0]


def send_with_invalidate(sock: socket.socket, data: bytes | memoryview, token: int) -> int:
    """Send the beginning of a frame, its length included; it ends a registration of the peer.

    :returns: bytes taken; what is left of the frame is sent as usual
    :raises OSError: EINVAL: the frame before has not been completed; as ``send`` otherwise. A
        token that the peer does not know ends the connection.
    """
    return sock.sendmsg([data], [(SOL_SMBDIRECT, _REMOTE_INVALIDATE, _TOKEN.pack(token))])


def netif_rdma_capable(ifname: str) -> bool:
    """Can SMB-Direct use this network interface (rather, one beneath it)?

    :raises OSError: ENODEV: there is no such interface; EPROTONOSUPPORT: no kernel module
    """
    with smbdirect_socket() as sock:
        asked = _NETIF.pack(os.fsencode(ifname), 0)
        _, node_type = _NETIF.unpack(fcntl.ioctl(sock, _NETIF_RDMA_CAPABLE, asked))
    return bool(node_type)
