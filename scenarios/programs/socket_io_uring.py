"""SMB-Direct sockets by io_uring: accept, connect, send, receive. Runs in a machine, plain Python.

Both ends in one process, on an address of its own. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import mmap
import os
import socket
import struct
from typing import Any

IPPROTO_SMBDIRECT = 257
_SETUP, _ENTER = 425, 426
_ENTER_GETEVENTS = 1
_OFFSET_SQ, _OFFSET_CQ, _OFFSET_SQES = 0, 0x8000000, 0x10000000
_ACCEPT, _CONNECT, _SEND, _RECV = 13, 16, 26, 27
_SQE = struct.Struct("=BBHiQQIIQ")
"""opcode, flags, ioprio, fd, off, addr, len, op_flags, user_data; the rest is 0"""
_SQE_SIZE = 64
_CQE = struct.Struct("=QiI")
_libc = ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *arguments: Any) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Ring:
    """The least of an io_uring: operations are submitted and waited for one by one or in pairs."""

    _ENTRIES = 8

    def __init__(self) -> None:
        parameters = ctypes.create_string_buffer(120)
        self._fd = syscall(_SETUP, self._ENTRIES, parameters)
        words = struct.unpack("=30I", parameters.raw)
        sq, cq = words[10:20], words[20:30]
        self._sq_head, self._sq_tail, self._sq_mask, _, _, _, self._sq_array = sq[:7]
        self._cq_head, self._cq_tail, self._cq_mask, _, _, self._cqes = cq[:6]
        self._sq = mmap.mmap(self._fd, self._sq_array + words[0] * 4, offset=_OFFSET_SQ)
        self._cq = mmap.mmap(self._fd, self._cqes + words[1] * _CQE.size, offset=_OFFSET_CQ)
        self._sqes = mmap.mmap(self._fd, words[0] * _SQE_SIZE, offset=_OFFSET_SQES)

    def submit(self, opcode: int, fd: int, address: int, length: int, offset: int = 0) -> int:
        """Begin an operation; return the number its result will have."""
        (tail,) = struct.unpack_from("=I", self._sq, self._sq_tail)
        (mask,) = struct.unpack_from("=I", self._sq, self._sq_mask)
        index = tail & mask
        entry = _SQE.pack(opcode, 0, 0, fd, offset, address, length, 0, tail + 1)
        start = index * _SQE_SIZE
        self._sqes[start : start + _SQE_SIZE] = entry.ljust(_SQE_SIZE, b"\0")
        struct.pack_into("=I", self._sq, self._sq_array + 4 * index, index)
        struct.pack_into("=I", self._sq, self._sq_tail, tail + 1)
        syscall(_ENTER, self._fd, 1, 0, 0, None, 0)
        return int(tail) + 1

    def results(self, count: int) -> dict[int, int]:
        """Wait for as many results."""
        found: dict[int, int] = {}
        while len(found) < count:
            syscall(_ENTER, self._fd, 0, 1, _ENTER_GETEVENTS, None, 0)
            (head,) = struct.unpack_from("=I", self._cq, self._cq_head)
            (tail,) = struct.unpack_from("=I", self._cq, self._cq_tail)
            (mask,) = struct.unpack_from("=I", self._cq, self._cq_mask)
            while head != tail:
                number, result, _ = _CQE.unpack_from(
                    self._cq, self._cqes + (head & mask) * _CQE.size
                )
                found[number] = result
                head += 1
            struct.pack_into("=I", self._cq, self._cq_head, head)
        return found

    def one(self, opcode: int, fd: int, address: int, length: int, offset: int = 0) -> int:
        number = self.submit(opcode, fd, address, length, offset)
        return self.results(1)[number]


def check(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    try:
        ring = Ring()
    except OSError as e:
        return {"no io_uring": errno.errorcode[e.errno or 0]}
    size = options.size
    data = ctypes.create_string_buffer(struct.pack(">I", size - 4) + os.urandom(size - 4), size)
    got = ctypes.create_string_buffer(size)

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SMBDIRECT)
    listener.bind((options.address, 0))
    listener.listen(1)
    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SMBDIRECT)
    port = listener.getsockname()[1]
    name = ctypes.create_string_buffer(
        struct.pack("=H", socket.AF_INET)
        + struct.pack(">H", port)
        + socket.inet_aton(options.address)
        + bytes(8),
        16,
    )
    accepting = ring.submit(_ACCEPT, listener.fileno(), 0, 0)
    connecting = ring.submit(_CONNECT, client.fileno(), ctypes.addressof(name), 0, 16)
    found = ring.results(2)
    results["connect"] = found[connecting]
    server = socket.socket(fileno=found[accepting])
    results["protocol"] = server.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)

    # Receiving begins before there is anything.
    receiving = ring.submit(_RECV, server.fileno(), ctypes.addressof(got), size)
    sending = ring.submit(_SEND, client.fileno(), ctypes.addressof(data), size)
    found = ring.results(2)
    at = found[receiving]
    results["sent"] = found[sending]
    results["first"] = at > 0
    while 0 < at < size:
        more = ring.one(_RECV, server.fileno(), ctypes.addressof(got) + at, size - at)
        if more <= 0:
            break
        at += more
    results["received"] = at
    results["same"] = got.raw == data.raw
    client.close()
    results["at the end"] = ring.one(_RECV, server.fileno(), ctypes.addressof(got), size)
    refused = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SMBDIRECT)
    listener.close()
    result = ring.one(_CONNECT, refused.fileno(), ctypes.addressof(name), 0, 16)
    results["refused"] = errno.errorcode[-result] if result < 0 else "connected"
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="SMB-Direct sockets by io_uring.")
    parser.add_argument("address")
    parser.add_argument("--size", type=int, default=300000)
    print(json.dumps(check(parser.parse_args())))


if __name__ == "__main__":
    main()
