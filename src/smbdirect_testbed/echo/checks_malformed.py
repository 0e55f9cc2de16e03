"""Checks of requests that no decent client sends: an error status or a disconnect, no crash."""

from __future__ import annotations

import errno
import struct

from smbdirect_testbed.echo.checking import Checks, Context, require
from smbdirect_testbed.echo.connection import Disconnected, Transport, frame
from smbdirect_testbed.echo.protocol import (
    MAGIC,
    UINT32_MAX,
    VERSION,
    Descriptor,
    EchoRequest,
    Opcode,
    SetupRequest,
    Status,
    TransferRequest,
    request_header,
)

CHECKS = Checks()

_ID = 4711
_LBUF = 3
_LBUF_SIZE = 4096
_NEVER_SET_UP = 61
_TRANSFERS = (Opcode.READ_LBUF_TO_DESCS, Opcode.WRITE_DESCS_TO_LBUF)
_SOMEWHERE = Descriptor(0x1000, 0x1234, 0x10000)
"""No memory of ours: what is refused must be refused before it is used."""


@CHECKS.add()
def bad_opcode(context: Context) -> None:
    """Opcodes that mean nothing"""
    for opcode in (0, 5, 0x80, 0xFF):
        context.refused(request_header(opcode, _ID), Status.BAD_OPCODE)


@CHECKS.add()
def bad_version(context: Context) -> None:
    """A version of the protocol that is not 1"""
    for version in (0, VERSION + 1, 0xFF):
        request = struct.pack("<HBBI", MAGIC, version, Opcode.ECHO, _ID)
        context.refused(request, Status.BAD_VERSION)


@CHECKS.add()
def bad_magic(context: Context) -> None:
    """A frame of another protocol"""
    context.hung_up_on_frame(b"\xfeSMB" + bytes(60))


@CHECKS.add()
def short_frames(context: Context) -> None:
    """Frames that end within the header"""
    header = request_header(Opcode.ECHO, _ID)
    for size in (1, 3, 7):
        context.hung_up_on_frame(header[:size])


@CHECKS.add()
def short_requests(context: Context) -> None:
    """Frames that end within the fields of a request"""
    echo = EchoRequest(_ID, 1, 100, b"").head()
    set_up = SetupRequest(_ID, _LBUF, 100, 1).encode()
    transfer = TransferRequest(_ID, _TRANSFERS[0], _LBUF, 0, 0, 0, ()).encode()
    for request in (echo, set_up, transfer):
        for size in (8, 9, len(request) - 1):
            context.refused(request[:size], Status.MALFORMED)


@CHECKS.add()
def long_requests(context: Context) -> None:
    """Bytes after the end of a request"""
    context.refused(EchoRequest(_ID, 1, 100, b"").head() + b"x", Status.MALFORMED)
    context.refused(SetupRequest(_ID, _LBUF, 100, 1).encode() + b"x", Status.MALFORMED)
    transfer = TransferRequest(_ID, _TRANSFERS[0], _LBUF, 0, 0, 0, ()).encode()
    context.refused(transfer + b"x", Status.MALFORMED)


@CHECKS.add()
def echo_bad_length(context: Context) -> None:
    """An echo whose length is not that of its data"""
    data = context.payload(100)
    for length in (0, 99, 101, 0x7FFFFFFF, 0x80000000, UINT32_MAX):
        head = request_header(Opcode.ECHO, _ID) + struct.pack("<HII", 1, length, UINT32_MAX)
        context.refused(head + data, Status.MALFORMED)


@CHECKS.add()
def echo_huge_answer(context: Context) -> None:
    """An echo that would be answered by 4 GiB"""
    data = context.payload(65_536)
    request = EchoRequest(_ID, 65535, UINT32_MAX, data).head() + data
    context.refused(request, Status.TOO_BIG)


@CHECKS.add()
def set_up_bad_index(context: Context) -> None:
    """A local buffer beyond the last"""
    for index in (4096, 0x7FFFFFFF, UINT32_MAX):
        context.refused(SetupRequest(_ID, index, 8, 1).encode(), Status.BAD_LBUF)


@CHECKS.add()
def set_up_huge(context: Context) -> None:
    """A local buffer of 4 GiB, and ever more of them"""
    context.refused(SetupRequest(_ID, _LBUF, UINT32_MAX, 1).encode(), Status.TOO_BIG)
    with context.fresh() as client:
        for index in range(64):
            client.connection.send(SetupRequest(index, index, 12 << 20, 1).encode())
            status = client.connection.receive(64)[4]
            if status == Status.TOO_BIG:
                break
            require(status == Status.OK, f"answered {status}")
        else:
            require(False, "64 buffers of 12 MiB were given to one client")
        context.still_serves(client)


@CHECKS.add()
def transfer_bad_index(context: Context) -> None:
    """A transfer with a local buffer that was never made"""
    for index in (_NEVER_SET_UP, 4096, UINT32_MAX):
        for opcode in _TRANSFERS:
            request = TransferRequest(_ID, opcode, index, 0, 0, 8, (_SOMEWHERE,))
            context.refused(request.encode(), Status.BAD_LBUF)


@CHECKS.add()
def transfer_out_of_range(context: Context) -> None:
    """Offsets and lengths that leave the local buffer, or wrap around 32 bits"""
    context.client.set_up(_LBUF, _LBUF_SIZE, context.nonce())
    everywhere = Descriptor(0, 0x1234, UINT32_MAX)
    ranges = (
        (0, _LBUF_SIZE + 1),
        (1, _LBUF_SIZE),
        (_LBUF_SIZE, 1),
        (_LBUF_SIZE + 1, 0),
        (8, UINT32_MAX - 7),
        (UINT32_MAX, 1),
        (UINT32_MAX - 7, 8),
        (UINT32_MAX, UINT32_MAX),
    )
    for offset, length in ranges:
        for opcode in _TRANSFERS:
            request = TransferRequest(_ID, opcode, _LBUF, 0, offset, length, (everywhere,))
            context.refused(request.encode(), Status.OUT_OF_RANGE)


@CHECKS.add()
def transfer_beyond_descriptors(context: Context) -> None:
    """A length that exceeds what the descriptors describe"""
    context.client.set_up(_LBUF, _LBUF_SIZE, context.nonce())
    for descriptors in ((), (_SOMEWHERE._replace(length=99),)):
        for opcode in _TRANSFERS:
            request = TransferRequest(_ID, opcode, _LBUF, 0, 0, 100, descriptors)
            context.refused(request.encode(), Status.OUT_OF_RANGE)


@CHECKS.add()
def transfer_bad_descriptors(context: Context) -> None:
    """Descriptors of no length, or beyond the end of all memory"""
    context.client.set_up(_LBUF, _LBUF_SIZE, context.nonce())
    for bad in (Descriptor(0, 1, 0), Descriptor((1 << 64) - 1, 1, 2)):
        for opcode in _TRANSFERS:
            request = TransferRequest(_ID, opcode, _LBUF, 0, 0, 8, (_SOMEWHERE, bad))
            context.refused(request.encode(), Status.MALFORMED)


@CHECKS.add()
def transfer_bad_flags(context: Context) -> None:
    """Flags that mean nothing, and an invalidation of nothing"""
    context.client.set_up(_LBUF, _LBUF_SIZE, context.nonce())
    for flags in (2, 0x80000000, UINT32_MAX):
        request = TransferRequest(_ID, _TRANSFERS[0], _LBUF, flags, 0, 8, (_SOMEWHERE,))
        context.refused(request.encode(), Status.MALFORMED)
    request = TransferRequest(_ID, _TRANSFERS[0], _LBUF, 1, 0, 0, ())
    context.refused(request.encode(), Status.MALFORMED)


@CHECKS.add()
def transfer_missing_descriptors(context: Context) -> None:
    """A number of descriptors that the frame does not have"""
    context.client.set_up(_LBUF, _LBUF_SIZE, context.nonce())
    one = struct.pack("<QII", *_SOMEWHERE)
    for number in (0, 2, 255, 0x10000000, 0x10000001, UINT32_MAX):
        fields = struct.pack("<IIIII", _LBUF, 0, 0, 8, number)
        request = request_header(_TRANSFERS[0], _ID) + fields + one
        context.refused(request, Status.MALFORMED, Status.TOO_BIG)


@CHECKS.add()
def transfer_65536_descriptors(context: Context) -> None:
    """65,536 descriptors in one request of 1 MiB"""
    context.client.set_up(_LBUF, _LBUF_SIZE, context.nonce())
    many = (_SOMEWHERE._replace(length=1),) * 65_536
    request = TransferRequest(_ID, _TRANSFERS[0], _LBUF, 0, 0, _LBUF_SIZE, many)
    context.refused(request.encode(), Status.TOO_BIG)


@CHECKS.add()
def transfer_without_rdma(context: Context) -> None:
    """A good transfer on a transport that has no RDMA"""
    context.client.set_up(_LBUF, _LBUF_SIZE, context.nonce())
    if context.target.transport is Transport.SMBDIRECT:
        return
    for opcode in _TRANSFERS:
        request = TransferRequest(_ID, opcode, _LBUF, 0, 0, 8, (_SOMEWHERE,))
        context.refused(request.encode(), Status.NOT_SUPPORTED)


@CHECKS.add()
def huge_frame(context: Context) -> None:
    """A frame that announces 4 GiB"""
    try:
        context.hung_up(struct.pack(">I", UINT32_MAX) + bytes(1000))
    except OSError as e:
        # Over SMB-Direct our own kernel does not even take it.
        require(
            context.target.transport is Transport.SMBDIRECT and e.errno == errno.EMSGSIZE, str(e)
        )
        context.still_serves()


@CHECKS.add()
def frame_cut_by_close(context: Context) -> None:
    """A client that closes within a frame, at several places"""
    data = context.payload(70_000)
    stream = frame(EchoRequest(_ID, 1, UINT32_MAX, data).head() + data)
    for size in (2, 4, 20, 60_000):
        with context.fresh() as client:
            client.connection.send_raw(stream[:size])
    context.still_serves()


@CHECKS.add()
def noise(context: Context) -> None:
    """Frames of random bytes, and requests with random bytes changed"""
    good = TransferRequest(_ID, _TRANSFERS[0], _NEVER_SET_UP, 0, 0, 8, (_SOMEWHERE,)).encode()
    client = context.client
    for attempt in range(60):
        if not attempt % 15:
            request = bytearray(context.random.randbytes(context.random.randrange(1, 200)))
        else:
            request = bytearray(good)
            for _ in range(context.random.randrange(1, 4)):
                # Not the magic: a hang-up is checked elsewhere, and costs a connection.
                request[context.random.randrange(2, len(request))] = context.random.randrange(256)
        try:
            client.connection.send(bytes(request))
            client.connection.receive(1 << 20)
        except Disconnected:
            context.drop()
            client = context.client
    context.still_serves(client)
