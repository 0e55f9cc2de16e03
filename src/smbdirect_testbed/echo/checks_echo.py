"""Checks of ECHO: frames of every size go and come as they are."""

from __future__ import annotations

import threading

from smbdirect_testbed.echo.checking import Checks, Context, require, same
from smbdirect_testbed.echo.connection import frame
from smbdirect_testbed.echo.protocol import (
    ECHO_OVERHEAD,
    UINT32_MAX,
    EchoRequest,
    parse_reply,
    repeated,
)

CHECKS = Checks()

_BOUNDARIES = [1364, 4096, 8192, 12288, 65536, 131072]
"""Bytes at which something changes: segments of SMB-Direct, pages, buffers."""
_SEGMENT_HEADER = 24
"""Bytes of a segment that are not payload ([MS-SMBD] 2.2.3)."""
_LARGE = 1 << 20


@CHECKS.add()
def echo_small(context: Context) -> None:
    """0 to 40 bytes, each number of them"""
    for size in range(41):
        _echo(context, size)


@CHECKS.add()
def echo_at_boundaries(context: Context) -> None:
    """Frames one byte below, at and above the sizes of segments, pages and buffers"""
    for boundary in _BOUNDARIES:
        for size in (boundary, boundary - _SEGMENT_HEADER):
            for around in (-1, 0, 1):
                _echo(context, size + around - ECHO_OVERHEAD)


@CHECKS.add()
def echo_large(context: Context) -> None:
    """1 MiB of data, and a byte less and more"""
    for size in (_LARGE - 1, _LARGE, _LARGE + 1):
        _echo(context, size)


@CHECKS.add()
def echo_odd_sizes(context: Context) -> None:
    """Twenty sizes at random"""
    for _ in range(20):
        _echo(context, context.random.randrange(1, 50_000))


@CHECKS.add()
def echo_factor(context: Context) -> None:
    """The data come back as often as was asked for"""
    for size, factor in ((0, 65535), (5, 0), (1, 2), (7, 3), (16, 65535), (65536, 16)):
        data = context.payload(size)
        wanted = repeated(data, factor, size * factor)
        same(context.client.echo(data, factor), wanted, f"{factor} times {size} bytes")


@CHECKS.add()
def echo_max_response(context: Context) -> None:
    """The answer is cut at the most that was asked for"""
    cases = ((10, 1, 0), (10, 1, 9), (10, 1, 10), (10, 3, 25), (1000, 65535, 4097), (0, 1, 1))
    for size, factor, most in cases:
        data = context.payload(size)
        wanted = repeated(data, factor, min(size * factor, most))
        same(context.client.echo(data, factor, most), wanted, f"{factor} x {size}, most {most}")


@CHECKS.add()
def echo_message_ids(context: Context) -> None:
    """Replies carry the id of their request, whatever it is"""
    connection = context.client.connection
    for message_id in (0, 1, 0x80000000, UINT32_MAX):
        request = EchoRequest(message_id, 1, 1, b"x")
        connection.send(request.head(), b"x")
        reply = parse_reply(connection.receive(_LARGE))
        require(reply.message_id == message_id, f"{reply.message_id} instead of {message_id}")


@CHECKS.add()
def echo_pipelined(context: Context) -> None:
    """Sixty-four requests before the first reply is read; replies in order"""
    client = context.client
    under_way = []
    for number in range(64):
        data = context.payload(number * 11)
        under_way.append((client.send_echo(data), data))
    for message_id, data in under_way:
        same(client.echo_reply(message_id), data, f"reply {message_id}")


@CHECKS.add()
def echo_in_one_write(context: Context) -> None:
    """Twenty frames in one call of send()"""
    requests = [
        EchoRequest(number, 1, UINT32_MAX, context.payload(number * 100)) for number in range(20)
    ]
    connection = context.client.connection
    connection.send_raw(b"".join(frame(r.head() + r.data) for r in requests))
    for request in requests:
        reply = parse_reply(connection.receive(_LARGE))
        same(reply.body[4:], request.data, f"reply {request.message_id}")


@CHECKS.add()
def echo_in_pieces(context: Context) -> None:
    """A frame written byte by byte at its beginning, then in odd pieces"""
    data = context.payload(20_000)
    request = EchoRequest(77, 1, UINT32_MAX, data)
    stream = frame(request.head() + data)
    connection = context.client.connection
    at = 0
    while at < len(stream):
        size = 1 if at < 30 else context.random.randrange(1, 3000)
        connection.send_raw(stream[at : at + size])
        at += size
    same(parse_reply(connection.receive(_LARGE)).body[4:], data, "the data")


@CHECKS.add()
def echo_empty_frames(context: Context) -> None:
    """Frames of no length change nothing"""
    connection = context.client.connection
    connection.send_raw(frame(b"") * 3)
    _echo(context, 50)


@CHECKS.add()
def echo_on_eight_connections(context: Context) -> None:
    """Eight clients at the same time"""
    failures: list[str] = []
    payloads = [[context.payload(size * 1001) for size in range(1, 9)] for _ in range(8)]

    def talk(mine: list[bytes]) -> None:
        try:
            with context.fresh() as client:
                for data in mine:
                    same(client.echo(data), data, "the data")
        except Exception as e:
            failures.append(f"{type(e).__name__}: {e}")

    threads = [threading.Thread(target=talk, args=(p,)) for p in payloads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    require(not failures, "; ".join(failures))


@CHECKS.add()
def echo_after_reconnecting(context: Context) -> None:
    """Ten connections one after the other, each closed as soon as its echo is back"""
    for _ in range(10):
        context.still_serves()


def _echo(context: Context, size: int) -> None:
    data = context.payload(size)
    same(context.client.echo(data), data, f"echo of {size} bytes")
