"""RDMA links by netlink: what ``rdma link add`` and ``del`` do, without a program to be started.

Requests and attributes are those of include/uapi/rdma/rdma_netlink.h and linux/netlink.h.
"""

from __future__ import annotations

import _socket as socket
import os
import struct

_NETLINK_RDMA = 20
_NLDEV = 5
_GET, _NEWLINK, _DELLINK = 1, 3, 4
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_DEV_INDEX, _DEV_NAME, _NDEV_NAME, _LINK_TYPE = 1, 2, 51, 65
_HEADER = "=IHHII"
_ATTRIBUTE = "=HH"
_LARGEST = 1 << 16


def add_link(name: str, kind: str, interface: str) -> None:
    """Put an RDMA device on an interface of the caller's network namespace.

    :param kind: ``rxe`` or ``siw``
    :raises OSError: the kernel refused
    """
    text = ((_DEV_NAME, name), (_LINK_TYPE, kind), (_NDEV_NAME, interface))
    _ask(_NEWLINK, _ACK, b"".join(_attribute(n, t.encode() + b"\0") for n, t in text))


def remove_link(name: str) -> None:
    """Remove an RDMA device that the caller's network namespace sees.

    :raises OSError: the kernel refused, or there is none of that name
    """
    for found in _ask(_GET, _DUMP, b""):
        if found[_DEV_NAME].rstrip(b"\0").decode() == name:
            _ask(_DELLINK, _ACK, _attribute(_DEV_INDEX, found[_DEV_INDEX]))
            return
    raise OSError(f"there is no RDMA link {name}")


def _ask(command: int, flags: int, attributes: bytes) -> list[dict[int, bytes]]:
    """Ask the kernel; return the attributes of each thing that it answers with."""
    length = struct.calcsize(_HEADER) + len(attributes)
    header = struct.pack(_HEADER, length, _NLDEV << 10 | command, _REQUEST | flags, 0, 0)
    asked = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_RDMA)
    try:
        asked.sendto(header + attributes, (0, 0))
        return _answers(asked)
    finally:
        asked.close()


def _answers(asked: socket.socket) -> list[dict[int, bytes]]:
    found: list[dict[int, bytes]] = []
    while True:
        data = asked.recv(_LARGEST)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            body, data = data[struct.calcsize(_HEADER) : length], data[_aligned(length) :]
            if kind in (_ERROR, _DONE):
                (status,) = struct.unpack_from("=i", body)
                if status:
                    raise OSError(-status, os.strerror(-status))
                return found
            found.append(_parsed(body))


def _attribute(number: int, value: bytes) -> bytes:
    length = struct.calcsize(_ATTRIBUTE) + len(value)
    return struct.pack(_ATTRIBUTE, length, number) + value + bytes(_aligned(length) - length)


def _parsed(data: bytes) -> dict[int, bytes]:
    attributes = {}
    while data:
        length, number = struct.unpack_from(_ATTRIBUTE, data)
        attributes[number] = data[struct.calcsize(_ATTRIBUTE) : length]
        data = data[_aligned(length) :]
    return attributes


def _aligned(length: int) -> int:
    return (length + 3) & ~3
