"""What a measurement repeats: operations of one kind and size, several under way at a time."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
from collections import deque
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from smbdirect_testbed.echo import rdma
from smbdirect_testbed.echo.client import EchoClient, Refused, WrongAnswer
from smbdirect_testbed.echo.connection import Connection, Disconnected, Silence, frame
from smbdirect_testbed.echo.operation import Operation
from smbdirect_testbed.echo.protocol import (
    UINT32_MAX,
    Descriptor,
    EchoRequest,
    NotThisProtocol,
    Opcode,
    Status,
    TransferRequest,
    first_difference,
    parse_count,
    parse_reply,
    part,
    pattern,
    repeated,
)

_LENGTH = struct.Struct(">I")
_PAYLOADS = 4
"""Payloads that take turns: what is left of the last one must not pass for the next."""
_RECEIVE_FACTOR = 16
_SMALLEST_BUFFER = 64 * 1024


class _Pipe:
    """Frames both ways over one connection, without ever waiting for the wrong side.

    With much under way, a client that waits until it can send and a server that waits until it can
    answer would wait for each other.

    :param most: bytes of the largest frame that may come
    """

    def __init__(self, connection: Connection, most: int) -> None:
        self._connection = connection
        self._socket = connection.socket
        self._outgoing: deque[memoryview] = deque()
        # Always the same memory: new memory has page faults, which are slow under emulation.
        self._buffer = memoryview(bytearray(max(2 * (most + _LENGTH.size), _SMALLEST_BUFFER)))
        self._begin = self._end = 0

    def push(self, stream: memoryview) -> None:
        """Send a frame, its length included, as far as possible now; the rest later."""
        self._outgoing.append(stream)
        self._flush()

    def next(self) -> memoryview:
        """The next frame; it is overwritten by the one after it.

        :raises Disconnected: there is none
        """
        while (taken := self._taken()) is None:
            if self._outgoing and not self._readable():
                self._flush()
                continue
            self._fill()
        return taken

    def _taken(self) -> memoryview | None:
        had = self._end - self._begin
        if had < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._buffer, self._begin)
        if 2 * (size + _LENGTH.size) > len(self._buffer):
            raise WrongAnswer(f"a frame of {size} bytes")
        if had < _LENGTH.size + size:
            return None
        begin = self._begin + _LENGTH.size
        self._begin = begin + size
        return self._buffer[begin : begin + size]

    def _fill(self) -> None:
        if self._begin == self._end:
            self._begin = self._end = 0
        elif self._begin > len(self._buffer) // 2:
            rest = bytes(self._buffer[self._begin : self._end])
            self._buffer[: len(rest)] = rest
            self._begin, self._end = 0, len(rest)
        try:
            got = self._socket.recv_into(self._buffer[self._end :])
        except OSError as e:
            raise self._connection.lost(e, "receiving") from e
        if not got:
            raise Disconnected("the peer closed")
        self._end += got

    def _flush(self) -> None:
        while self._outgoing:
            first = self._outgoing[0]
            try:
                sent = self._socket.send(first, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as e:
                raise self._connection.lost(e, "sending") from e
            if sent < len(first):
                self._outgoing[0] = first[sent:]
            else:
                self._outgoing.popleft()

    def _readable(self) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT)
        ready = poll.poll(self._connection.patience * 1000)
        if not ready:
            raise Silence("neither sending nor receiving is possible")
        return bool(ready[0][1] & ~select.POLLOUT)


class Workload:
    """Operations on a connection, in the order begun; a context that holds what they need.

    :param seed: of the payloads
    """

    def __init__(
        self, connection: Connection, operation: Operation, size: int, depth: int, seed: int
    ) -> None:
        self.depth = depth
        self._connection = connection
        self._operation = operation
        self._size = size
        self._stack = ExitStack()
        random_ = random.Random(f"{seed} {operation} {size}")
        self._nonces = [random_.getrandbits(64) for _ in range(_PAYLOADS)]
        self._payloads = [pattern(nonce, size) for nonce in self._nonces]
        self._pipe = _Pipe(connection, size + 64)
        self._requests: list[memoryview] = []
        self._memory: list[memoryview] = []
        self._written: dict[int, int] = {}
        self._begun = self._done = 0
        self._reply = memoryview(b"")

    def __enter__(self) -> Self:
        with self._stack:
            self._prepare()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def begin(self) -> None:
        """Begin one more operation."""
        self._pipe.push(self._requests[self._begun % len(self._requests)])
        self._begun += 1

    def wait(self) -> None:
        """Wait until the oldest operation is complete."""
        self._reply = self._pipe.next()

    def verify(self) -> None:
        """Check the data of the operation that was waited for.

        :raises WrongAnswer: they are not what they must be
        :raises Refused: the server gave an error status
        """
        number = self._done % len(self._requests)
        self._done += 1
        try:
            reply = parse_reply(self._reply)
            if reply.status != Status.OK:
                raise Refused(reply.status)
            count, data = parse_count(reply.body)
        except NotThisProtocol as e:
            raise WrongAnswer(str(e)) from e
        if reply.message_id != number:
            raise WrongAnswer(f"a reply to request {reply.message_id} instead of {number}")
        wanted: bytes | memoryview = self._payloads[self._payload_of(number)]
        got = data
        match self._operation:
            case Operation.SEND:
                wanted = wanted[:8]
            case Operation.RECEIVE:
                chunk, factor = self._received_as()
                wanted = repeated(wanted[:chunk], factor, self._size)
            case Operation.RDMA_READ:
                got = self._memory[number % self.depth]
            case Operation.RDMA_WRITE:
                self._written[number % self.depth] = number
                wanted = b""
                if count != self._size:
                    raise WrongAnswer(f"{count} bytes of {self._size} written")
        if difference := first_difference(got, wanted):
            raise WrongAnswer(f"{self._operation} of {self._size} bytes: {difference}")

    def verify_all(self) -> None:
        """Check what could not be seen before: the data that RDMA wrote to the server.

        :raises WrongAnswer: they are not what they must be
        """
        client = EchoClient(self._connection)
        for slot, number in self._written.items():
            got = bytearray(self._size)
            with rdma.registered(self._connection, got, remote_write=True) as descriptors:
                client.read(slot, 0, self._size, descriptors)
            if difference := first_difference(
                memoryview(got), self._payloads[self._payload_of(number)]
            ):
                raise WrongAnswer(f"{self._operation} of {self._size} bytes: {difference}")
        self._written.clear()

    def _prepare(self) -> None:
        """Make the frames that take turns; the message id is the place of one among them."""
        match self._operation:
            case Operation.RDMA_READ:
                self._prepare_rdma_read()
            case Operation.RDMA_WRITE:
                self._prepare_rdma_write()
            case _:
                for number in range(_PAYLOADS):
                    payload = self._payloads[self._payload_of(number)]
                    chunk, factor, most = len(payload), 1, UINT32_MAX
                    if self._operation is Operation.SEND:
                        most = 8
                    elif self._operation is Operation.RECEIVE:
                        (chunk, factor), most = self._received_as(), self._size
                    data = payload[:chunk]
                    self._add(EchoRequest(number, factor, most, data).head() + data)

    def _received_as(self) -> tuple[int, int]:
        """Bytes to send and the factor, to receive as many bytes as wanted."""
        if self._size < _RECEIVE_FACTOR:
            return self._size, 1
        return -(-self._size // _RECEIVE_FACTOR), _RECEIVE_FACTOR

    def _prepare_rdma_read(self) -> None:
        self._make_lbufs(self._nonces)
        descriptors = self._register(bytearray(self._size * self.depth), remote_write=True)
        for number in range(_PAYLOADS * self.depth):
            place = descriptors[number % self.depth]
            self._add_transfer(number, Opcode.READ_LBUF_TO_DESCS, self._payload_of(number), place)

    def _prepare_rdma_write(self) -> None:
        self._make_lbufs([0] * self.depth)
        descriptors = self._register(bytearray().join(self._payloads), remote_write=False)
        for number in range(_PAYLOADS * self.depth):
            data = descriptors[self._payload_of(number)]
            self._add_transfer(number, Opcode.WRITE_DESCS_TO_LBUF, number % self.depth, data)

    def _payload_of(self, number: int) -> int:
        """Which payload a request has: at one place in memory, never that of the one before."""
        return (number % self.depth + number // self.depth) % _PAYLOADS

    def _make_lbufs(self, nonces: list[int]) -> None:
        client = EchoClient(self._connection)

        def give_up(lbuf: int) -> None:
            with contextlib.suppress(Disconnected, OSError):
                client.set_up(lbuf, 0, 0)

        for lbuf, nonce in enumerate(nonces):
            client.set_up(lbuf, self._size, nonce)
            self._stack.callback(give_up, lbuf)

    def _register(self, memory: bytearray, *, remote_write: bool) -> list[list[Descriptor]]:
        """Open memory to the server, all at once: a connection has few registrations."""
        size = self._size
        self._memory = [memoryview(memory)[at : at + size] for at in range(0, len(memory), size)]
        whole = self._stack.enter_context(
            rdma.registered(self._connection, memory, remote_write=remote_write)
        )
        return [part(whole, at, size) for at in range(0, len(memory), size)]

    def _add_transfer(
        self, number: int, opcode: Opcode, lbuf: int, descriptors: list[Descriptor]
    ) -> None:
        request = TransferRequest(number, opcode, lbuf, 0, 0, self._size, tuple(descriptors))
        self._add(request.encode())

    def _add(self, request: bytes) -> None:
        self._requests.append(memoryview(frame(request)))
