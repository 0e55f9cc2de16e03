"""The protocol's messages and payloads."""

from __future__ import annotations

import contextlib
import struct

import pytest

from smbdirect_testbed.echo.protocol import (
    BadRequest,
    Descriptor,
    EchoRequest,
    NotThisProtocol,
    Opcode,
    SetupRequest,
    Status,
    TransferRequest,
    first_difference,
    parse_reply,
    parse_request,
    pattern,
    repeated,
    reply_count,
    reply_header,
    trimmed,
)

ECHO = bytes.fromhex("5344 01 01 04030201 0200 03000000 05000000 616263")
SETUP = bytes.fromhex("5344 01 02 07000000 03000000 00100000 0807060504030201")
READ = bytes.fromhex(
    "5344 01 03 09000000 01000000 01000000 10000000 20000000 01000000"
    "0000000000000080 78563412 20000000"
)


def parse(frame: bytes) -> object:
    return parse_request(memoryview(frame), most_descriptors=4)


def test_bytes_on_the_wire() -> None:
    """As docs/echo.md has them: little-endian, no padding."""
    assert parse(ECHO) == EchoRequest(0x01020304, 2, 5, b"abc")
    assert EchoRequest(0x01020304, 2, 5, b"abc").head() + b"abc" == ECHO
    assert parse(SETUP) == SetupRequest(7, 3, 4096, 0x0102030405060708)
    assert SetupRequest(7, 3, 4096, 0x0102030405060708).encode() == SETUP
    piece = Descriptor(1 << 63, 0x12345678, 32)
    read = TransferRequest(9, Opcode.READ_LBUF_TO_DESCS, 1, 1, 16, 32, (piece,))
    assert parse(READ) == read
    assert read.encode() == READ
    assert reply_count(1, 2) == struct.pack("<III", 1, 0, 2)
    assert parse_reply(memoryview(reply_header(5, Status.TOO_BIG)))[:2] == (5, 6)


@pytest.mark.parametrize(
    ("frame", "status"),
    [
        (b"SD\x02\x01" + bytes(4), Status.BAD_VERSION),
        (b"SD\x01\x09" + bytes(4), Status.BAD_OPCODE),
        (b"SD\x01\x01" + bytes(4), Status.MALFORMED),
        (ECHO[:-1], Status.MALFORMED),
        (ECHO + b"x", Status.MALFORMED),
        (SETUP[:-1], Status.MALFORMED),
        (SETUP + b"x", Status.MALFORMED),
        (READ[:-1], Status.MALFORMED),
        (READ + b"x", Status.MALFORMED),
        (READ[:24] + b"\x05\x00\x00\x00" + READ[28:], Status.TOO_BIG),
        (READ[:12] + b"\x02\x00\x00\x00" + READ[16:], Status.MALFORMED),
        (READ[:20] + b"\x21\x00\x00\x00" + READ[24:], Status.OUT_OF_RANGE),
        (READ[:28] + b"\xff" * 8 + READ[36:], Status.MALFORMED),
        (READ[:-4] + bytes(4), Status.MALFORMED),
    ],
)
def test_malformed_requests_have_a_status(frame: bytes, status: Status) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(frame)
    assert caught.value.status is status
    assert caught.value.message_id == int.from_bytes(frame[4:8], "little")


@pytest.mark.parametrize("frame", [b"", b"S", b"SD\x01\x01\x00\x00\x00", b"\xfeSMB" + bytes(60)])
def test_other_frames_have_no_answer(frame: bytes) -> None:
    with pytest.raises(NotThisProtocol):
        parse(frame)


def test_every_shortened_or_changed_request_is_refused_or_understood() -> None:
    for good in (ECHO, SETUP, READ):
        for at in range(len(good)):
            for frame in (good[:at], good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :]):
                with contextlib.suppress(BadRequest, NotThisProtocol):
                    parse(frame)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4096, 32767, 32768, 32769, 100_001])
def test_pattern_is_the_plans(size: int) -> None:
    nonce = 0xFEDCBA9876543210
    words = b"".join(struct.pack("<Q", nonce ^ offset) for offset in range(0, size, 8))
    assert pattern(nonce, size) == words[:size]


def test_repeated() -> None:
    assert repeated(b"abc", 3, 7) == b"abcabca"
    assert repeated(b"abc", 65535, 2) == b"ab"
    assert repeated(b"", 65535, 0) == b""


def test_trimmed() -> None:
    whole = [Descriptor(0, 1, 10), Descriptor(100, 2, 10)]
    assert trimmed(whole, 0) == []
    assert trimmed(whole, 10) == [Descriptor(0, 1, 10)]
    assert trimmed(whole, 11) == [Descriptor(0, 1, 10), Descriptor(100, 2, 1)]
    assert trimmed(whole, 20) == whole


def test_differences_are_named() -> None:
    assert first_difference(b"abc", b"abc") is None
    assert first_difference(b"abc", b"abcd") == "3 bytes instead of 4"
    assert first_difference(b"abc", b"axc") == "at byte 1 of 3: 6263 instead of 7863"
