"""The protocol of the standalone suite, version 1; ``docs/echo.md`` describes it.

All numbers are little-endian, without padding. Each message is one frame of the stream, see
:mod:`smbdirect_testbed.echo.connection`.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

MAGIC = 0x4453
"""The first two bytes of every request: ``SD``."""
VERSION = 1
UINT32_MAX = 0xFFFFFFFF

_REQUEST = struct.Struct("<HBBI")
_REPLY = struct.Struct("<II")
_ECHO = struct.Struct("<HII")
_SETUP = struct.Struct("<IIQ")
_TRANSFER = struct.Struct("<IIIII")
_DESCRIPTOR = struct.Struct("<QII")
_COUNT = struct.Struct("<I")

REQUEST_SIZE = _REQUEST.size
REPLY_SIZE = _REPLY.size
ECHO_OVERHEAD = REQUEST_SIZE + _ECHO.size
"""Bytes of an echo request that are not its data; the reply has fewer."""
DESCRIPTOR_SIZE = _DESCRIPTOR.size


class Opcode(IntEnum):
    """What a request asks for."""

    ECHO = 1
    SETUP_LBUF = 2
    READ_LBUF_TO_DESCS = 3
    WRITE_DESCS_TO_LBUF = 4


class Status(IntEnum):
    """How a request ended."""

    OK = 0
    MALFORMED = 1
    """The frame's length does not fit its fields, or a field has no meaning."""
    BAD_OPCODE = 2
    BAD_VERSION = 3
    BAD_LBUF = 4
    """There is no such local buffer: index out of range, or never set up."""
    OUT_OF_RANGE = 5
    """Offset and length leave the local buffer, or exceed the descriptors."""
    TOO_BIG = 6
    """More than this server or this connection gives."""
    NOT_SUPPORTED = 7
    """No RDMA on this transport."""
    RDMA_FAILED = 8
    """The transfer failed; the connection may be gone with it."""


class TransferFlags(IntFlag):
    """Flags of a transfer."""

    SEND_WITH_INV = 1
    """Answer by a send that invalidates the token of the first descriptor."""


# A plain number: the complement of an IntFlag has no bits that are not flags, either.
_KNOWN_FLAGS = int(TransferFlags.SEND_WITH_INV)


class Descriptor(NamedTuple):
    """A piece of the client's memory; the fields of a buffer descriptor V1 ([MS-SMBD] 2.2.3.1)."""

    offset: int
    token: int
    length: int


class BadRequest(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: Status, message_id: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.message_id = message_id


class NotThisProtocol(Exception):
    """A frame that is no message of this protocol; there is nothing to answer to."""


@dataclass(frozen=True, slots=True)
class EchoRequest:
    """Answer with the first ``max_response`` bytes of ``data`` repeated ``factor`` times."""

    message_id: int
    factor: int
    max_response: int
    data: memoryview | bytes

    @property
    def response_size(self) -> int:
        """Bytes of data in the answer."""
        return min(len(self.data) * self.factor, self.max_response)

    def head(self) -> bytes:
        """The request without its data, which follows."""
        return request_header(Opcode.ECHO, self.message_id) + _ECHO.pack(
            self.factor, len(self.data), self.max_response
        )


@dataclass(frozen=True, slots=True)
class SetupRequest:
    """Make local buffer ``lbuf`` of ``size`` bytes with the pattern of ``nonce``."""

    message_id: int
    lbuf: int
    size: int
    nonce: int

    def encode(self) -> bytes:
        """The request."""
        return request_header(Opcode.SETUP_LBUF, self.message_id) + _SETUP.pack(
            self.lbuf, self.size, self.nonce
        )


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """Move ``length`` bytes between a local buffer, from ``offset`` on, and descriptors by RDMA."""

    message_id: int
    opcode: Opcode
    lbuf: int
    flags: int
    offset: int
    length: int
    descriptors: tuple[Descriptor, ...]

    def encode(self) -> bytes:
        """The request."""
        head = request_header(self.opcode, self.message_id)
        fields = (self.lbuf, self.flags, self.offset, self.length, len(self.descriptors))
        return b"".join(
            [head, _TRANSFER.pack(*fields), *(_DESCRIPTOR.pack(*d) for d in self.descriptors)]
        )


Request = EchoRequest | SetupRequest | TransferRequest


def request_header(opcode: int, message_id: int) -> bytes:
    """The beginning of every request."""
    return _REQUEST.pack(MAGIC, VERSION, opcode, message_id)


def parse_request(frame: memoryview, *, most_descriptors: int) -> Request:
    """Take a request apart; nothing in it is trusted.

    :param most_descriptors: with more, a request is refused before any is looked at
    :raises BadRequest: it is to be answered with an error
    :raises NotThisProtocol: it cannot be answered
    """
    if len(frame) < REQUEST_SIZE:
        raise NotThisProtocol(f"a frame of {len(frame)} bytes has no header")
    magic, version, opcode, message_id = _REQUEST.unpack_from(frame)
    if magic != MAGIC:
        raise NotThisProtocol(f"a frame begins with 0x{magic:04x}")
    if version != VERSION:
        raise BadRequest(Status.BAD_VERSION, message_id, f"version {version}")
    body = frame[REQUEST_SIZE:]
    if opcode == Opcode.ECHO:
        return _parse_echo(message_id, body)
    if opcode == Opcode.SETUP_LBUF:
        if len(body) != _SETUP.size:
            raise BadRequest(Status.MALFORMED, message_id, f"{len(body)} bytes of set-up")
        return SetupRequest(message_id, *_SETUP.unpack(body))
    if opcode in (Opcode.READ_LBUF_TO_DESCS, Opcode.WRITE_DESCS_TO_LBUF):
        return _parse_transfer(message_id, Opcode(opcode), body, most_descriptors)
    raise BadRequest(Status.BAD_OPCODE, message_id, f"opcode {opcode}")


def _parse_echo(message_id: int, body: memoryview) -> EchoRequest:
    if len(body) < _ECHO.size:
        raise BadRequest(Status.MALFORMED, message_id, f"{len(body)} bytes of echo")
    factor, size, most = _ECHO.unpack_from(body)
    data = body[_ECHO.size :]
    if len(data) != size:
        raise BadRequest(Status.MALFORMED, message_id, f"{len(data)} bytes of data, not {size}")
    return EchoRequest(message_id, factor, most, data)


def _parse_transfer(
    message_id: int, opcode: Opcode, body: memoryview, most_descriptors: int
) -> TransferRequest:
    if len(body) < _TRANSFER.size:
        raise BadRequest(Status.MALFORMED, message_id, f"{len(body)} bytes of transfer")
    lbuf, flags, offset, length, number = _TRANSFER.unpack_from(body)
    if flags & ~_KNOWN_FLAGS:
        raise BadRequest(Status.MALFORMED, message_id, f"flags 0x{flags:x}")
    if number > most_descriptors:
        raise BadRequest(Status.TOO_BIG, message_id, f"{number} descriptors")
    table = body[_TRANSFER.size :]
    if len(table) != number * _DESCRIPTOR.size:
        raise BadRequest(
            Status.MALFORMED, message_id, f"{len(table)} bytes for {number} descriptors"
        )
    descriptors = tuple(Descriptor._make(d) for d in _DESCRIPTOR.iter_unpack(table))
    for d in descriptors:
        if not d.length or d.offset + d.length > 1 << 64:
            raise BadRequest(Status.MALFORMED, message_id, f"descriptor {d}")
    if flags & TransferFlags.SEND_WITH_INV and not descriptors:
        raise BadRequest(Status.MALFORMED, message_id, "no descriptor to invalidate")
    if sum(d.length for d in descriptors) < length:
        raise BadRequest(Status.OUT_OF_RANGE, message_id, f"{length} bytes exceed the descriptors")
    return TransferRequest(message_id, opcode, lbuf, flags, offset, length, descriptors)


def trimmed(descriptors: Sequence[Descriptor], length: int) -> list[Descriptor]:
    """The first ``length`` bytes of what the descriptors describe."""
    result = []
    for d in descriptors:
        if not length:
            break
        part = min(length, d.length)
        result.append(d._replace(length=part))
        length -= part
    return result


def part(whole: Sequence[Descriptor], skipped: int, length: int) -> list[Descriptor]:
    """What describes ``length`` bytes after the first ``skipped``."""
    rest = []
    for d in whole:
        begin = min(skipped, d.length)
        skipped -= begin
        if begin < d.length:
            rest.append(d._replace(offset=d.offset + begin, length=d.length - begin))
    return trimmed(rest, length)


def reply_header(message_id: int, status: Status = Status.OK) -> bytes:
    """The beginning of every reply, and all of one that says an error."""
    return _REPLY.pack(message_id, status)


def reply_count(message_id: int, count: int) -> bytes:
    """The reply to a transfer; in one to an echo, ``count`` bytes of data follow."""
    return _REPLY.pack(message_id, Status.OK) + _COUNT.pack(count)


class Reply(NamedTuple):
    """A reply; ``body`` is what follows its header."""

    message_id: int
    status: int
    body: memoryview


def parse_reply(frame: memoryview) -> Reply:
    """Take a reply apart.

    :raises NotThisProtocol: it has no header
    """
    if len(frame) < REPLY_SIZE:
        raise NotThisProtocol(f"a reply of {len(frame)} bytes")
    message_id, status = _REPLY.unpack_from(frame)
    return Reply(message_id, status, frame[REPLY_SIZE:])


def parse_count(body: memoryview) -> tuple[int, memoryview]:
    """The count in a reply, and what follows it.

    :raises NotThisProtocol: there is none
    """
    if len(body) < _COUNT.size:
        raise NotThisProtocol(f"a reply with {len(body)} bytes for a count")
    return _COUNT.unpack_from(body)[0], body[_COUNT.size :]


def status_name(status: int) -> str:
    """A status in words, also one that we do not know."""
    return Status(status).name if status in {s.value for s in Status} else f"status {status}"


def _word_offsets() -> int:
    table = array("Q", range(0, _BLOCK, 8))
    if sys.byteorder == "big":
        table.byteswap()
    return int.from_bytes(table.tobytes(), "little")


_BLOCK = 32 * 1024
_OFFSETS_IN_BLOCK = _word_offsets()


def pattern(nonce: int, size: int) -> bytes:
    """``size`` bytes that tell by themselves which nonce and which place they are of.

    At each multiple of eight there is LE64(nonce ^ offset); the last word may be cut.
    """
    # Long integers by blocks: a loop over the words would take longer than the transfer.
    blocks = []
    for base in range(0, size, _BLOCK):
        nonces = int.from_bytes((nonce ^ base).to_bytes(8, "little") * (_BLOCK // 8), "little")
        blocks.append((nonces ^ _OFFSETS_IN_BLOCK).to_bytes(_BLOCK, "little"))
    return b"".join(blocks)[:size]


def repeated(data: bytes | memoryview, factor: int, size: int) -> bytes:
    """The first ``size`` bytes of ``data`` repeated ``factor`` times, never more memory than that.

    :param size: at most ``factor`` times the length of the data
    """
    if not size:
        return b""
    if factor == 1 or size <= len(data):
        return bytes(data[:size])
    return (bytes(data) * -(-size // len(data)))[:size]


def first_difference(got: bytes | memoryview, wanted: bytes | memoryview) -> str | None:
    """Where two payloads differ, in words; None if they are equal."""
    if got == wanted:
        return None
    if len(got) != len(wanted):
        return f"{len(got)} bytes instead of {len(wanted)}"
    at = next(i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b)
    seen, right = bytes(got[at : at + 8]).hex(), bytes(wanted[at : at + 8]).hex()
    return f"at byte {at} of {len(wanted)}: {seen} instead of {right}"


def total(pieces: Iterable[Descriptor]) -> int:
    """Bytes described."""
    return sum(d.length for d in pieces)
