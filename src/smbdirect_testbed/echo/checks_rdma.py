"""Checks of RDMA: the server reads and writes the client's memory, there and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from smbdirect_testbed.echo import rdma
from smbdirect_testbed.echo.checking import (
    CheckFailed,
    Checks,
    Context,
    canaries,
    require,
    same,
    untouched,
)
from smbdirect_testbed.echo.client import EchoClient, Refused
from smbdirect_testbed.echo.connection import Disconnected, Silence
from smbdirect_testbed.echo.protocol import Descriptor, Opcode, Status, part, pattern, total

CHECKS = Checks()

_LBUF = 0
_MARGIN = 8192
"""Bytes around a piece of memory in which nothing may change."""
_PAGE = 4096
_LARGE = 1 << 20
_SIZES = [1, 7, 8, 9, _PAGE - 1, _PAGE, _PAGE + 1, 2 * _PAGE, 65535, 65536, 65537, _LARGE]
_OFFSETS = [0, 1, 7, 8, _PAGE - 1, _PAGE, _PAGE + 1]


@CHECKS.add(rdma=True)
def rdma_read_sizes(context: Context) -> None:
    """Local buffers of every size come into our memory, and its surroundings do not change"""
    for size in _SIZES:
        nonce = context.nonce()
        context.client.set_up(_LBUF, size, nonce)
        got = _read(context.client, 0, size)
        same(got, pattern(nonce, size), f"{size} bytes")


@CHECKS.add(rdma=True)
def rdma_read_offsets(context: Context) -> None:
    """Parts of a local buffer, at every boundary, come to every boundary of our memory"""
    size, nonce = 3 * _PAGE, context.nonce()
    context.client.set_up(_LBUF, size, nonce)
    whole = pattern(nonce, size)
    for offset in _OFFSETS:
        for length in (1, 9, _PAGE, size - offset):
            at = context.random.choice(_OFFSETS)
            got = _read(context.client, offset, length, at=at)
            same(got, whole[offset : offset + length], f"{length} bytes at {offset} to {at}")


@CHECKS.add(rdma=True)
def rdma_write_sizes(context: Context) -> None:
    """Our memory of every size goes into a local buffer, and comes back as it was"""
    for size in _SIZES:
        data = context.payload(size)
        context.client.set_up(_LBUF, size, context.nonce())
        _write(context.client, 0, data)
        same(_read(context.client, 0, size), data, f"{size} bytes")


@CHECKS.add(rdma=True)
def rdma_write_offsets(context: Context) -> None:
    """Our memory goes to every boundary of a local buffer, and the rest of that stays"""
    size, nonce = 3 * _PAGE, context.nonce()
    context.client.set_up(_LBUF, size, nonce)
    wanted = bytearray(pattern(nonce, size))
    for offset in _OFFSETS:
        for length in (1, 9, _PAGE):
            data = context.payload(length)
            _write(context.client, offset, data, at=context.random.choice(_OFFSETS))
            wanted[offset : offset + length] = data
    same(_read(context.client, 0, size), wanted, "the buffer after all writes")


@CHECKS.add(rdma=True)
def rdma_of_nothing(context: Context) -> None:
    """Transfers of no bytes"""
    client = context.client
    client.set_up(_LBUF, 100, context.nonce())
    require(client.read(_LBUF, 100, 0, ()) == 0, "bytes were read")
    require(client.write(_LBUF, 0, 0, ()) == 0, "bytes were written")
    client.set_up(_LBUF, 0, context.nonce())
    require(client.read(_LBUF, 0, 0, ()) == 0, "bytes were read")


@CHECKS.add(rdma=True)
def rdma_read_many_descriptors(context: Context) -> None:
    """2, 3, 16, 100 and 256 pieces of our memory, in any order, of any length"""
    client = context.client
    for number in (2, 3, 16, 100, 256):
        nonce = context.nonce()
        with _room(client, 100_000, remote_write=True) as (buffer, whole):
            pieces = _pieces(context, whole, number)
            size = total(pieces)
            client.set_up(_LBUF, size, nonce)
            done = client.read(_LBUF, 0, size, pieces)
            require(done == size, f"{done} bytes of {size} done")
            same(_gathered(buffer, whole, pieces), pattern(nonce, size), f"{number} pieces")


@CHECKS.add(rdma=True)
def rdma_write_many_descriptors(context: Context) -> None:
    """The same from our memory"""
    client = context.client
    for number in (2, 3, 16, 100, 256):
        with _room(client, 100_000, remote_write=False) as (buffer, whole):
            buffer[:] = context.payload(len(buffer))
            pieces = _pieces(context, whole, number)
            wanted = _gathered(buffer, whole, pieces)
            client.set_up(_LBUF, len(wanted), context.nonce())
            done = client.write(_LBUF, 0, len(wanted), pieces)
            require(done == len(wanted), f"{done} bytes of {len(wanted)} done")
        same(_read(client, 0, len(wanted)), wanted, f"{number} pieces")


@CHECKS.add(rdma=True)
def rdma_several_registrations(context: Context) -> None:
    """Descriptors of eight registrations in one request"""
    client = context.client
    buffers = [canaries(5000 + i) for i in range(8)]
    registrations = [rdma.register(client.connection, b, remote_write=True) for b in buffers]
    try:
        descriptors = [d for r in registrations for d in rdma.ours(r)]
        size, nonce = sum(len(b) for b in buffers), context.nonce()
        client.set_up(_LBUF, size, nonce)
        done = client.read(_LBUF, 0, size, descriptors)
        require(done == size, f"{done} bytes of {size} done")
        same(b"".join(buffers), pattern(nonce, size), "all eight")
    finally:
        for registration in registrations:
            registration.close()


@CHECKS.add(rdma=True)
def rdma_less_than_described(context: Context) -> None:
    """A transfer shorter than its descriptors leaves the rest alone"""
    client, nonce = context.client, context.nonce()
    client.set_up(_LBUF, 10_000, nonce)
    with _room(client, 10_000, remote_write=True) as (buffer, whole):
        done = client.read(_LBUF, 0, 4097, whole)
        require(done == 4097, f"{done} bytes of 4097 done")
        same(buffer[:4097], pattern(nonce, 4097), "what was read")
        untouched(buffer[4097:], "what was not")


@CHECKS.add(rdma=True)
def rdma_register_again_and_again(context: Context) -> None:
    """A hundred registrations one after the other, each used once"""
    client, nonce = context.client, context.nonce()
    client.set_up(_LBUF, 2 * _PAGE, nonce)
    wanted = pattern(nonce, 2 * _PAGE)
    for _ in range(100):
        same(_read(client, 0, 2 * _PAGE), wanted, "two pages")


@CHECKS.add(rdma=True)
def rdma_among_echoes(context: Context) -> None:
    """Echoes between registration and transfer, and data in the buffer that is there now"""
    client = context.client
    for _ in range(10):
        nonce = context.nonce()
        client.set_up(_LBUF, 20_000, nonce)
        with _room(client, 20_000, remote_write=True) as (buffer, whole):
            context.still_serves(client)
            client.read(_LBUF, 0, 20_000, whole)
            context.still_serves(client)
            same(buffer, pattern(nonce, 20_000), "the buffer")


@CHECKS.add(rdma=True)
def rdma_lbufs_of_connections(context: Context) -> None:
    """Two connections' local buffers of one index are two"""
    with context.fresh() as one, context.fresh() as two:
        nonces = context.nonce(), context.nonce()
        for client, nonce in zip((one, two), nonces, strict=True):
            client.set_up(_LBUF, 1000, nonce)
        for client, nonce in zip((one, two), nonces, strict=True):
            same(_read(client, 0, 1000), pattern(nonce, 1000), "a connection's own buffer")


@CHECKS.add(rdma=True)
def send_with_invalidate(context: Context) -> None:
    """A reply that invalidates the token: the data are there, and the token is dead"""
    with context.fresh() as client:
        nonce = context.nonce()
        client.set_up(_LBUF, 5000, nonce)
        with _room(client, 5000, remote_write=True) as (buffer, whole):
            done = client.read(_LBUF, 0, 5000, whole, invalidate=True)
            require(done == 5000, f"{done} bytes of 5000 done")
            same(buffer, pattern(nonce, 5000), "what was read")
        context.still_serves(client)
        with _room(client, 5000, remote_write=True) as (buffer, whole):
            client.read(_LBUF, 0, 5000, whole, invalidate=True)
            buffer[:] = canaries(5000)
            with _dead():
                client.read(_LBUF, 0, 5000, whole)
            untouched(buffer, "memory behind an invalidated token")
    context.still_serves()


@CHECKS.add(rdma=True)
def send_with_invalidate_often(context: Context) -> None:
    """Fifty transfers in both directions, each of a registration that the reply ends"""
    client = context.client
    for _ in range(25):
        data = context.payload(3000)
        client.set_up(_LBUF, 3000, context.nonce())
        with rdma.registered(client.connection, bytearray(data), remote_write=False) as whole:
            client.write(_LBUF, 0, 3000, whole, invalidate=True)
        with _room(client, 3000, remote_write=True) as (buffer, whole):
            client.read(_LBUF, 0, 3000, whole, invalidate=True)
            same(buffer, data, "what came back")


@CHECKS.add(rdma=True)
def dead_token(context: Context) -> None:
    """A token that never was, and one that is no more"""
    for opcode in (Opcode.READ_LBUF_TO_DESCS, Opcode.WRITE_DESCS_TO_LBUF):
        reading = opcode is Opcode.READ_LBUF_TO_DESCS
        with context.fresh() as client:
            client.set_up(_LBUF, 100, 1)
            never = [Descriptor(0x1000, 0xDEADBEEF, 100)]
            with _dead():
                _transfer(client, opcode, never)
        with context.fresh() as client:
            client.set_up(_LBUF, 100, 1)
            with _room(client, 100, remote_write=reading) as (buffer, gone):
                pass
            with _dead():
                _transfer(client, opcode, gone)
            untouched(buffer, "memory that is not registered any more")
    context.still_serves()


@CHECKS.add(rdma=True)
def memory_to_read_is_written(context: Context) -> None:
    """Memory open for reading only cannot be written"""
    with context.fresh() as client:
        client.set_up(_LBUF, 100, 1)
        with _room(client, 100, remote_write=False) as (buffer, whole):
            with _dead():
                client.read(_LBUF, 0, 100, whole)
            untouched(buffer, "memory that is open for reading only")
    context.still_serves()


@CHECKS.add(rdma=True)
def memory_to_write_is_read(context: Context) -> None:
    """Memory open for writing only cannot be read"""
    with context.fresh() as client:
        client.set_up(_LBUF, 100, 1)
        with _room(client, 100, remote_write=True) as (_, whole), _dead():
            client.write(_LBUF, 0, 100, whole)
    context.still_serves()


@CHECKS.add(rdma=True)
def token_beyond_its_memory(context: Context) -> None:
    """One byte before or behind what is registered"""
    for before, behind in ((1, 0), (0, 1)):
        with context.fresh() as client:
            client.set_up(_LBUF, 3 * _PAGE, 1)
            memory = canaries(3 * _PAGE)
            page = memoryview(memory)[_PAGE : 2 * _PAGE]
            with rdma.registered(client.connection, page, remote_write=True) as (d, *_):
                wrong = d._replace(offset=d.offset - before, length=d.length + before + behind)
                with _dead():
                    client.read(_LBUF, 0, wrong.length, [wrong])
            untouched(memory[:_PAGE], "memory before it")
            untouched(memory[2 * _PAGE :], "memory behind it")
    context.still_serves()


@CHECKS.add(rdma=True)
def token_of_another_connection(context: Context) -> None:
    """What is open to one peer is not open on another connection"""
    with context.fresh() as one, context.fresh() as two:
        two.set_up(_LBUF, 100, 1)
        with _room(one, 100, remote_write=True) as (buffer, whole):
            with _dead():
                two.read(_LBUF, 0, 100, whole)
            untouched(buffer, "the other connection's memory")
        context.still_serves(one)


@CHECKS.add(rdma=True)
def close_with_registrations(context: Context) -> None:
    """Connections that close with memory still registered, on either side's initiative"""
    for _ in range(3):
        with context.fresh() as client:
            client.set_up(_LBUF, 5000, 1)
            registration = rdma.register(client.connection, canaries(5000), remote_write=True)
            client.read(_LBUF, 0, 5000, rdma.ours(registration))
        with suppress(OSError):
            registration.close()
    context.still_serves()


@contextmanager
def _dead() -> Iterator[None]:
    """A transfer that must end by an error status or a disconnect."""
    try:
        yield
    except Refused as e:
        require(e.status == Status.RDMA_FAILED, str(e))
    except Silence:
        raise
    except Disconnected:
        pass
    else:
        raise CheckFailed("data were moved through a token that is no good")


def _transfer(client: EchoClient, opcode: Opcode, descriptors: Sequence[Descriptor]) -> int:
    call = client.read if opcode is Opcode.READ_LBUF_TO_DESCS else client.write
    return call(_LBUF, 0, 100, descriptors)


@contextmanager
def _room(
    client: EchoClient, size: int, *, remote_write: bool, at: int = 0
) -> Iterator[tuple[memoryview, tuple[Descriptor, ...]]]:
    """Memory of ours, registered, amid a margin that must stay as it is."""
    memory = canaries(_MARGIN + at + size + _MARGIN)
    begin = _MARGIN + at
    buffer = memoryview(memory)[begin : begin + size]
    with rdma.registered(client.connection, buffer, remote_write=remote_write) as descriptors:
        require(total(descriptors) == size, f"{total(descriptors)} bytes registered of {size}")
        yield buffer, descriptors
    untouched(memory[:begin], "memory before what was registered")
    untouched(memory[begin + size :], "memory behind what was registered")


def _read(client: EchoClient, offset: int, length: int, *, at: int = 0) -> bytes:
    """A part of the local buffer, by RDMA."""
    with _room(client, length, remote_write=True, at=at) as (buffer, descriptors):
        done = client.read(_LBUF, offset, length, descriptors)
        require(done == length, f"{done} bytes of {length} read")
        return bytes(buffer)


def _write(client: EchoClient, offset: int, data: bytes, *, at: int = 0) -> None:
    """Fill a part of the local buffer, by RDMA."""
    with _room(client, len(data), remote_write=False, at=at) as (buffer, descriptors):
        buffer[:] = data
        done = client.write(_LBUF, offset, len(data), descriptors)
        require(done == len(data), f"{done} bytes of {len(data)} written")
        same(buffer, data, "memory that was only read")


def _pieces(context: Context, whole: Sequence[Descriptor], number: int) -> list[Descriptor]:
    """Pieces of registered memory that do not overlap, shuffled, with gaps."""
    each = total(whole) // number
    pieces: list[Descriptor] = []
    for index in range(number):
        length = context.random.randrange(1, each)
        skipped = index * each + context.random.randrange(each - length)
        pieces += part(whole, skipped, length)
    context.random.shuffle(pieces)
    return pieces[:number]


def _gathered(
    buffer: memoryview, whole: Sequence[Descriptor], pieces: Sequence[Descriptor]
) -> bytes:
    """The bytes of our memory that the pieces describe, in their order."""
    result = bytearray()
    for piece in pieces:
        at = 0
        for d in whole:
            if d.token == piece.token and 0 <= piece.offset - d.offset < d.length:
                at += piece.offset - d.offset
                break
            at += d.length
        result += buffer[at : at + piece.length]
    return bytes(result)
