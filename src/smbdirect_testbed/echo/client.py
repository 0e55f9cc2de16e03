"""The client: requests and their answers, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from smbdirect_testbed.echo.connection import Connection, FrameTooBig
from smbdirect_testbed.echo.protocol import (
    UINT32_MAX,
    Descriptor,
    EchoRequest,
    NotThisProtocol,
    Opcode,
    Reply,
    SetupRequest,
    Status,
    TransferFlags,
    TransferRequest,
    parse_count,
    parse_reply,
    status_name,
)

_LARGEST_REPLY = 32 << 20


class Refused(Exception):
    """The server answered with an error status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server answered {status_name(status)}")
        self.status = status


class WrongAnswer(Exception):
    """The server's answer is not what the protocol says."""


class EchoClient:
    """Requests on one connection.

    All methods raise :class:`~smbdirect_testbed.echo.connection.Disconnected` when the connection
    is gone, :class:`Refused` for an error status, :class:`WrongAnswer` for nonsense.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._next_id = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def new_id(self) -> int:
        """A message id that is not under way."""
        self._next_id = (self._next_id + 1) & UINT32_MAX
        return self._next_id

    def reply(self, message_id: int) -> memoryview:
        """The next reply, which must be to this request; what follows its header."""
        try:
            reply: Reply = parse_reply(self.connection.receive(_LARGEST_REPLY))
        except (NotThisProtocol, FrameTooBig) as e:
            raise WrongAnswer(str(e)) from e
        if reply.message_id != message_id:
            raise WrongAnswer(f"a reply to request {reply.message_id} instead of {message_id}")
        if reply.status != Status.OK:
            if reply.body:
                raise WrongAnswer(f"{len(reply.body)} bytes after an error status")
            raise Refused(reply.status)
        return reply.body

    def send_echo(self, data: bytes, factor: int = 1, most: int = UINT32_MAX) -> int:
        """Only send the request of an echo; its message id."""
        request = EchoRequest(self.new_id(), factor, most, data)
        self.connection.send(request.head(), data)
        return request.message_id

    def echo_reply(self, message_id: int) -> memoryview:
        """Only receive the data of an echo."""
        count, data = self._count(self.reply(message_id))
        if count != len(data):
            raise WrongAnswer(f"{len(data)} bytes of data, announced as {count}")
        return data

    def echo(self, data: bytes, factor: int = 1, most: int = UINT32_MAX) -> memoryview:
        """What comes back: the data, ``factor`` times, the first ``most`` bytes of that."""
        return self.echo_reply(self.send_echo(data, factor, most))

    def set_up(self, lbuf: int, size: int, nonce: int) -> None:
        """Make a local buffer at the server."""
        request = SetupRequest(self.new_id(), lbuf, size, nonce)
        self.connection.send(request.encode())
        if body := self.reply(request.message_id):
            raise WrongAnswer(f"{len(body)} bytes after the reply to a set-up")

    def read(
        self,
        lbuf: int,
        offset: int,
        length: int,
        descriptors: Sequence[Descriptor],
        *,
        invalidate: bool = False,
    ) -> int:
        """Have the server write a part of its buffer into our memory; bytes done."""
        opcode = Opcode.READ_LBUF_TO_DESCS
        return self._transfer(opcode, lbuf, offset, length, descriptors, invalidate)

    def write(
        self,
        lbuf: int,
        offset: int,
        length: int,
        descriptors: Sequence[Descriptor],
        *,
        invalidate: bool = False,
    ) -> int:
        """Have the server fill a part of its buffer from our memory; bytes done."""
        opcode = Opcode.WRITE_DESCS_TO_LBUF
        return self._transfer(opcode, lbuf, offset, length, descriptors, invalidate)

    def _transfer(
        self,
        opcode: Opcode,
        lbuf: int,
        offset: int,
        length: int,
        descriptors: Sequence[Descriptor],
        invalidate: bool,
    ) -> int:
        flags = TransferFlags.SEND_WITH_INV if invalidate else TransferFlags(0)
        request = TransferRequest(
            self.new_id(), opcode, lbuf, flags, offset, length, tuple(descriptors)
        )
        self.connection.send(request.encode())
        count, rest = self._count(self.reply(request.message_id))
        if rest:
            raise WrongAnswer(f"{len(rest)} bytes after the reply to a transfer")
        return count

    @staticmethod
    def _count(body: memoryview) -> tuple[int, memoryview]:
        try:
            return parse_count(body)
        except NotThisProtocol as e:
            raise WrongAnswer(str(e)) from e
