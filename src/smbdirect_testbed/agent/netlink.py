"""Requests to the kernel by netlink, without a program to be started; linux/netlink.h."""

from __future__ import annotations

import _socket as socket
import os
import struct

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400
_ERROR, _DONE = 2, 3
_REASONED = 0x200
"""The flag of an error that has more to say than its number."""
_REASON = 1
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_HEADER = "=IHHII"
_ATTRIBUTE = "=HH"
_NUMBER_OF_ATTRIBUTE = 0x3FFF
_LARGEST = 1 << 16


def ask(protocol: int, kind: int, flags: int, body: bytes) -> list[bytes]:
    """Ask the kernel, as far as the caller's network namespace is concerned.

    :param kind: of the message
    :param flags: with :data:`ACK` or :data:`DUMP`, without which there may be no answer
    :param body: what follows the message's header
    :returns: the bodies of its answers
    :raises OSError: the kernel refused, with the reason that it gives, if any
    """
    length = struct.calcsize(_HEADER) + len(body)
    asked = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    try:
        for option in (_CAP_ACK, _EXT_ACK):
            asked.setsockopt(_SOL_NETLINK, option, 1)
        asked.sendto(struct.pack(_HEADER, length, kind, REQUEST | flags, 0, 0) + body, (0, 0))
        return _answers(asked)
    finally:
        asked.close()


def _answers(asked: socket.socket) -> list[bytes]:
    found: list[bytes] = []
    while True:
        data = asked.recv(_LARGEST)
        while data:
            length, kind, flags = struct.unpack_from("=IHH", data)
            body, data = data[struct.calcsize(_HEADER) : length], data[_aligned(length) :]
            if kind in (_ERROR, _DONE):
                (status,) = struct.unpack_from("=i", body)
                if status:
                    raise OSError(-status, _reason(-status, flags, body))
                return found
            found.append(body)


def _reason(number: int, flags: int, body: bytes) -> str:
    reason = os.strerror(number)
    if flags & _REASONED:
        said = parsed(body[4 + struct.calcsize(_HEADER) :]).get(_REASON, b"")
        reason += f" ({text})" if (text := said.rstrip(b"\0").decode()) else ""
    return reason


def attribute(number: int, value: bytes) -> bytes:
    """One attribute as it stands in a message."""
    length = struct.calcsize(_ATTRIBUTE) + len(value)
    return struct.pack(_ATTRIBUTE, length, number) + value + bytes(_aligned(length) - length)


def text(value: str) -> bytes:
    """A text as it stands in an attribute."""
    return value.encode() + b"\0"


def parsed(data: bytes) -> dict[int, bytes]:
    """Attributes by their numbers; the last one of each."""
    return dict(listed(data))


def listed(data: bytes) -> list[tuple[int, bytes]]:
    """Attributes with their numbers, in their order."""
    attributes = []
    while data:
        length, number = struct.unpack_from(_ATTRIBUTE, data)
        value = data[struct.calcsize(_ATTRIBUTE) : length]
        attributes.append((number & _NUMBER_OF_ATTRIBUTE, value))
        data = data[_aligned(length) :]
    return attributes


def _aligned(length: int) -> int:
    return (length + 3) & ~3
