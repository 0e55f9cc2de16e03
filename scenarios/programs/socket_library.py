"""libsmbdirect, the C library, called from Python. Runs in a machine, with its plain Python.

Both ends of a connection in one process, on an address of its own. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import socket
import struct
import threading
from contextlib import suppress
from typing import Any

_PARAMETERS = struct.Struct("=14I")
_DESCRIPTOR = struct.Struct("<QII")
_SIZE = 100000
_LEVEL = 289
_READ = ((3 << 30) | (16 << 16) | (ord("S") << 8) | 0x23) - (1 << 32)
"""A request for an RDMA read, with 16 bytes before its descriptors."""
_PATIENCE = 5.0


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Message(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.POINTER(Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


def vector(memory: Any, *lengths: int) -> Any:
    """Consecutive pieces of memory"""
    base = ctypes.addressof(memory)
    pieces = (Iovec * len(lengths))()
    for piece, length in zip(pieces, lengths, strict=True):
        piece.base, piece.length = base, length
        base += length
    return pieces


class Library:
    """Calls of the library; -1 becomes OSError."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path, use_errno=True)

    def __call__(self, function: str, *arguments: Any) -> int:
        result: int = getattr(self._library, f"smbdirect_{function}")(*arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def refused(self, function: str, *arguments: Any) -> str:
        try:
            self(function, *arguments)
        except OSError as e:
            return errno.errorcode[e.errno or 0]
        return "accepted"


def parameters(library: Library, fd: int) -> tuple[int, ...]:
    buffer = ctypes.create_string_buffer(_PARAMETERS.size)
    library("connection_get_parameters", fd, buffer)
    return _PARAMETERS.unpack(buffer.raw)


def check(options: argparse.Namespace) -> dict[str, Any]:
    library = Library(options.library)
    results: dict[str, Any] = {}
    wanted = ctypes.create_string_buffer(_PARAMETERS.pack(100, *[0] * 13), _PARAMETERS.size)
    wrong = ctypes.create_string_buffer(_PARAMETERS.pack(1, *[0] * 13), _PARAMETERS.size)

    listener = socket.socket(fileno=library("socket", socket.AF_INET, 0, wanted))
    results["refused"] = library.refused("connection_set_parameters", listener.fileno(), wrong)
    listener.bind((options.address, 0))
    listener.listen(1)
    accepted: list[socket.socket] = []
    thread = threading.Thread(target=lambda: accepted.append(listener.accept()[0]))
    thread.start()
    client = socket.socket(fileno=library("socket", socket.AF_INET, socket.SOCK_CLOEXEC, None))
    client.connect(listener.getsockname())
    thread.join()
    (server,) = accepted
    results["inherited"] = parameters(library, server.fileno())[0]
    results["default"] = parameters(library, client.fileno())[0]

    memory = (ctypes.c_char * _SIZE).from_buffer(bytearray(os.urandom(_SIZE)))
    other = (ctypes.c_char * _SIZE)()
    descriptor = ctypes.create_string_buffer(_DESCRIPTOR.size)
    library("rdma_v1_register", client.fileno(), vector(memory, _SIZE), 0, descriptor)
    results["length"] = _DESCRIPTOR.unpack(descriptor.raw)[2]
    pieces = vector(other, 1, 4095, _SIZE - 4096)
    results["read"] = library("rdma_v1_readv", server.fileno(), descriptor, 1, pieces, 3)
    results["same"] = other.raw == memory.raw
    # The result of a call that was interrupted, and read more than the next one wants.
    request = struct.pack("=QII", 1 << 63, _SIZE, 1) + descriptor.raw
    server.sendmsg([], [(_LEVEL, _READ, request)], socket.MSG_OOB)
    results["after another"] = library(
        "rdma_v1_readv", server.fileno(), descriptor, 1, vector(other, 10), 1
    )
    library("rdma_v1_deregister", client.fileno(), descriptor)
    results["twice"] = library.refused("rdma_v1_deregister", client.fileno(), descriptor)

    os.set_blocking(server.fileno(), False)
    library("rdma_v1_register", client.fileno(), vector(memory, _SIZE), 1, descriptor)
    other.raw = os.urandom(_SIZE)
    results["written"] = library("rdma_v1_writev", server.fileno(), descriptor, 1, pieces, 3)
    results["arrived"] = other.raw == memory.raw
    wrong_side = library.refused("rdma_v1_readv", client.fileno(), descriptor, 1, pieces, 3)
    results["wrong side"] = wrong_side

    token = _DESCRIPTOR.unpack(descriptor.raw)[1]
    data = ctypes.create_string_buffer(b"\0\0\0\4done", 8)
    message = Message(iov=vector(data, 8), iovlen=1)
    control = ctypes.create_string_buffer(64)
    small = library.refused("buffer_invalidate_cmsg_prepare", ctypes.byref(message), control, 8)
    results["too small"] = small
    arguments = (ctypes.byref(message), control, ctypes.c_size_t(64), ctypes.c_uint32(token))
    library("buffer_invalidate_cmsg_prepare", *arguments)
    sent = ctypes.CDLL(None).sendmsg(server.fileno(), ctypes.byref(message), 0)
    results["sent"] = sent
    results["message"] = client.recv(8, socket.MSG_WAITALL).decode()
    # The message has ended the registration: the server must not reach it any more.
    other.raw = os.urandom(_SIZE)
    before = memory.raw
    results["invalidated"] = library.refused(
        "rdma_v1_writev", server.fileno(), descriptor, 1, pieces, 3
    )
    client.settimeout(_PATIENCE)
    with suppress(ConnectionError):
        # Neither the server's message nor silence: the connection is at its end.
        results["after"] = client.recv(8).decode()
    results["untouched"] = memory.raw == before

    results["capable"] = library("netif_rdma_capable", options.interface.encode())
    results["incapable"] = library("netif_rdma_capable", b"lo")
    results["no interface"] = library.refused("netif_rdma_capable", b"nobody0")
    results["long name"] = library.refused("netif_rdma_capable", b"x" * 100)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Check libsmbdirect.")
    parser.add_argument("library")
    parser.add_argument("address")
    parser.add_argument("interface")
    print(json.dumps(check(parser.parse_args())))


if __name__ == "__main__":
    main()
