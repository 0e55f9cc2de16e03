"""What [MS-SMBD] forbids a peer, and what it allows although nobody would expect it."""

from __future__ import annotations

import random
from collections.abc import Callable

from pyverbs.libibverbs_enums import (
    IBV_WR_ATOMIC_FETCH_AND_ADD,
    IBV_WR_RDMA_READ,
    IBV_WR_RDMA_WRITE,
    IBV_WR_SEND_WITH_IMM,
    IBV_WR_SEND_WITH_INV,
)
from raw_smbd import HEADER_SIZE, RESPONSE_REQUESTED, Peer, data, request, response

LARGEST = 8192
"""Bytes of a message that the other side takes of us, for we asked for no more."""
LARGEST_FRAME = 200_000
"""Bytes of a frame that the other side takes: it was told to say so."""
_PAYLOAD = bytes(range(100))
_NOBODYS_KEY = 0x00DEAD01
_SOMEWHERE = 0x10000

# Negotiate requests.

OTHER_VERSIONS = {
    "before ours": request(min_version=0x0000, max_version=0x00FF),
    "after ours": request(min_version=0x0101, max_version=0x0200),
    "upside down": request(min_version=0x0200, max_version=0x0100),
    "largest": request(min_version=0xFFFF, max_version=0xFFFF),
    "none": request(min_version=0, max_version=0),
    "big-endian": request(min_version=0x0001, max_version=0x0001),
    "data instead": data(_PAYLOAD, credits_requested=10),
}
"""Answered with STATUS_NOT_SUPPORTED, 3.1.5.6; then the connection ends."""

BAD_REQUESTS = {
    "empty": b"",
    "one byte": b"\0",
    "one byte too short": request()[:-1],
    "longer than any buffer": request() + bytes(12288),
    "no credits": request(credits_requested=0),
    "receives nothing": request(max_receive=0),
    "receives too little": request(max_receive=127),
    "no frames": request(max_fragmented=0),
    "frames too small": request(max_fragmented=131071),
    "nothing but versions": request()[:4] + bytes(16),
}
"""The connection ends without an answer."""

ODD_REQUESTS = {
    "all versions": request(min_version=0, max_version=0xFFFF),
    "reserved": request(reserved=0xFFFF),
    "all credits": request(credits_requested=0xFFFF),
    "one credit": request(credits_requested=1),
    "sends nothing": request(preferred_send=0),
    "sends too little": request(preferred_send=127),
    "sends everything": request(preferred_send=0xFFFFFFFF),
    "receives the least": request(max_receive=128),
    "receives everything": request(max_receive=0xFFFFFFFF),
    "the smallest frames": request(max_fragmented=131072),
    "the largest frames": request(max_fragmented=0xFFFFFFFF),
    "more than a request": request() + bytes(12288 - 20),
}
"""Allowed."""

# Negotiate responses.

OTHER_ANSWERS = {
    "no version": response(negotiated=0),
    "next version": response(negotiated=0x0101),
    "big-endian": response(negotiated=0x0001),
    "not supported": response(negotiated=0, status=0xC00000BB),
    "failed": response(status=0xC0000001),
    "success of a kind": response(status=1),
}
"""The connection is refused."""

BAD_ANSWERS = {
    "empty": b"",
    "one byte": b"\0",
    "one byte too short": response()[:-1],
    "longer than any buffer": response() + bytes(12288),
    "request instead": request(),
    "data instead": data(_PAYLOAD[:40], credits_requested=0x100),
    "no credits asked for": response(credits_requested=0),
    "no credits granted": response(credits_granted=0),
    "sends too much": response(preferred_send=12289),
    "receives nothing": response(max_receive=0),
    "receives too little": response(max_receive=127),
    "no frames": response(max_fragmented=0),
    "frames too small": response(max_fragmented=131071),
    "no transfers": response(max_read_write=0),
    "transfers of less than a page": response(max_read_write=4095),
    "noise": random.Random(1).randbytes(32),
}
"""The connection ends."""

ODD_ANSWERS = {
    "versions": response(min_version=0, max_version=0xFFFF),
    "reserved": response(reserved=0xFFFF),
    "all credits": response(credits_requested=0xFFFF, credits_granted=0xFFFF),
    "one credit asked for": response(credits_requested=1),
    "sends nothing": response(preferred_send=0),
    "receives the least": response(max_receive=128),
    "receives everything": response(max_receive=0xFFFFFFFF),
    "the largest frames": response(max_fragmented=0xFFFFFFFF),
    "large transfers": response(max_read_write=0xFFFFFFFF),
    "more than an answer": response() + bytes(12288 - 32),
}
"""Allowed."""

# After the negotiation.

_FIRST = data(_PAYLOAD, remaining=50)

FORBIDDEN = {
    "empty message": [b""],
    "one byte": [b"\1"],
    "one byte too short": [data()[:-1]],
    "longer than a buffer": [data(bytes(LARGEST - HEADER_SIZE + 1))],
    "no credits requested": [data(credits_requested=0)],
    "no credits requested, with data": [data(_PAYLOAD, credits_requested=0)],
    "offset of one": [data(_PAYLOAD, offset=1)],
    "offset not aligned": [data(_PAYLOAD, offset=20)],
    "offset beyond the message": [data(_PAYLOAD, offset=128)],
    "offset beyond, no data": [data(offset=0x1000)],
    "offset at the end of numbers": [data(_PAYLOAD, offset=0xFFFFFFF8)],
    "offset and length wrap around": [data(_PAYLOAD, offset=0xFFFFFFF8, length=16)],
    "one byte more than there is": [data(_PAYLOAD, length=len(_PAYLOAD) + 1)],
    "most data possible": [data(_PAYLOAD, length=0xFFFFFFFF)],
    "data in an empty message": [data(length=1, offset=24)],
    "frame larger than agreed": [data(_PAYLOAD, remaining=LARGEST_FRAME - len(_PAYLOAD) + 1)],
    "largest frame possible": [data(_PAYLOAD, remaining=0xFFFFFFFF)],
    "more remaining than agreed, no data": [data(remaining=LARGEST_FRAME + 1)],
    "more than announced": [_FIRST, data(bytes(60))],
    "more announced later": [_FIRST, data(bytes(10), remaining=50)],
    "less than announced": [_FIRST, data(bytes(10))],
    "less remaining than announced": [_FIRST, data(bytes(10), remaining=30)],
    "two beginnings": [_FIRST, _FIRST],
    "negotiation, again": [request()],
    "negotiation's answer": [response()],
}
"""Messages that end the connection, 3.1.5.8."""

OURS = (
    "frame larger than agreed",
    "more remaining than agreed, no data",
    "more than announced",
    "more announced later",
    "less than announced",
    "less remaining than announced",
    "two beginnings",
)
"""Those that end it because of our parameters, or of the check on sums that our socket adds."""

Allowed = tuple[list[bytes], bytes]

ALLOWED: dict[str, Allowed] = {
    "one message": ([data(_PAYLOAD)], _PAYLOAD),
    "largest message": ([data(bytes(LARGEST - HEADER_SIZE))], bytes(LARGEST - HEADER_SIZE)),
    "unknown flags": ([data(_PAYLOAD, flags=0xFFFE)], _PAYLOAD),
    "reserved": ([data(_PAYLOAD, reserved=0xFFFF)], _PAYLOAD),
    "a gap": ([data(bytes(8) + _PAYLOAD, offset=32, length=len(_PAYLOAD))], _PAYLOAD),
    "the header as data": (
        [data(_PAYLOAD, offset=0, length=20)],
        data(_PAYLOAD, offset=0, length=20)[:20],
    ),
    "more than the data": ([data(_PAYLOAD + bytes(900), length=len(_PAYLOAD))], _PAYLOAD),
    "byte by byte": (
        [data(_PAYLOAD[i : i + 1], remaining=9 - i) for i in range(10)],
        _PAYLOAD[:10],
    ),
    "empty messages within": (
        [_FIRST, data(), data(flags=RESPONSE_REQUESTED), data(bytes(50))],
        _PAYLOAD + bytes(50),
    ),
    "all credits, again and again": (
        [data(credits_granted=0xFFFF)] * 8 + [data(_PAYLOAD)],
        _PAYLOAD,
    ),
    "credits wanted come and go": (
        [data(credits_requested=1), data(credits_requested=0xFFFF), data(_PAYLOAD)],
        _PAYLOAD,
    ),
    "offset beyond the header, no data": ([data(offset=16), data(_PAYLOAD)], _PAYLOAD),
}
"""Messages of one frame, and what is in it."""


def _dead_key(opcode: int, size: int) -> Callable[[Peer], str]:
    return lambda peer: peer.send(bytes(size), opcode, key=_NOBODYS_KEY, remote=_SOMEWHERE)


def _invalidate(peer: Peer) -> str:
    return peer.send(data(_PAYLOAD), IBV_WR_SEND_WITH_INV, key=_NOBODYS_KEY)


DEAD_KEYS: dict[str, Callable[[Peer], str]] = {
    "write": _dead_key(IBV_WR_RDMA_WRITE, 4096),
    "read": _dead_key(IBV_WR_RDMA_READ, 4096),
    "atomic": _dead_key(IBV_WR_ATOMIC_FETCH_AND_ADD, 8),
    "invalidation": _invalidate,
}
"""RDMA with memory that was never offered: the device refuses, and the connection ends."""


def immediate(peer: Peer) -> str:
    """A message with four bytes of immediate data, which nobody looks at."""
    return peer.send(data(_PAYLOAD), IBV_WR_SEND_WITH_IMM, key=1)
