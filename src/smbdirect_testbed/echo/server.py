"""The server: one thread a connection, and bounds on everything that a peer can ask for."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from selectors import EVENT_READ, DefaultSelector
from types import TracebackType
from typing import Self, assert_never

from smbdirect_testbed.echo import rdma
from smbdirect_testbed.echo.connection import (
    Connection,
    Disconnected,
    FrameTooBig,
    Transport,
    frame,
)
from smbdirect_testbed.echo.protocol import (
    BadRequest,
    EchoRequest,
    NotThisProtocol,
    Opcode,
    Request,
    SetupRequest,
    Status,
    TransferFlags,
    TransferRequest,
    parse_request,
    pattern,
    repeated,
    reply_count,
    reply_header,
    trimmed,
)

_NO_SUCH_CALL = {errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.ENOSYS}
_JOIN_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server gives; requests for more get an error status.

    :param connections: at a time; more are closed as soon as they are accepted
    :param frame: bytes of a frame in either direction
    :param lbufs: local buffers of a connection
    :param lbuf_size: bytes of one of them
    :param lbufs_total: bytes of all local buffers of a connection
    :param descriptors: of one request
    :param patience: seconds without progress after which a connection is closed
    """

    connections: int = 64
    frame: int = 1_566_720
    lbufs: int = 64
    lbuf_size: int = 16 << 20
    lbufs_total: int = 32 << 20
    descriptors: int = 256
    patience: float = 120.0


class _Session:
    """One connection's requests, answered one after the other."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._lbufs: dict[int, bytearray] = {}

    def run(self) -> None:
        """Answer until the peer closes, or says what cannot be answered."""
        while True:
            received = self._connection.receive(self._limits.frame)
            if not received:
                continue  # over SMB-Direct an empty frame never arrives
            try:
                request = parse_request(received, most_descriptors=self._limits.descriptors)
                self._answer(request)
            except BadRequest as bad:
                self._connection.send(reply_header(bad.message_id, bad.status))

    def _answer(self, request: Request) -> None:
        match request:
            case EchoRequest():
                self._echo(request)
            case SetupRequest():
                self._set_up(request)
            case TransferRequest():
                self._transfer(request)
            case _:
                assert_never(request)

    def _echo(self, request: EchoRequest) -> None:
        size = request.response_size
        head = reply_count(request.message_id, size)
        if len(head) + size > self._limits.frame:
            raise BadRequest(Status.TOO_BIG, request.message_id, f"{size} bytes of answer")
        try:
            self._connection.send(head, repeated(request.data, request.factor, size))
        except OSError as e:
            if e.errno != errno.EMSGSIZE:
                raise
            # Nothing of it was taken: this peer has smaller buffers than we have.
            raise BadRequest(Status.TOO_BIG, request.message_id, str(e)) from e

    def _set_up(self, request: SetupRequest) -> None:
        limits = self._limits
        if request.lbuf >= limits.lbufs:
            raise BadRequest(Status.BAD_LBUF, request.message_id, f"index {request.lbuf}")
        others = sum(len(b) for i, b in self._lbufs.items() if i != request.lbuf)
        if request.size > limits.lbuf_size or others + request.size > limits.lbufs_total:
            raise BadRequest(Status.TOO_BIG, request.message_id, f"{request.size} bytes")
        self._lbufs[request.lbuf] = bytearray(pattern(request.nonce, request.size))
        self._connection.send(reply_header(request.message_id))

    def _transfer(self, request: TransferRequest) -> None:
        lbuf = self._lbufs.get(request.lbuf)
        if lbuf is None:
            raise BadRequest(Status.BAD_LBUF, request.message_id, f"index {request.lbuf}")
        if request.offset + request.length > len(lbuf):
            raise BadRequest(Status.OUT_OF_RANGE, request.message_id, "beyond the local buffer")
        if not self._connection.rdma:
            raise BadRequest(Status.NOT_SUPPORTED, request.message_id, "no RDMA")
        done = self._move(request, memoryview(lbuf)) if request.length else 0
        reply = reply_count(request.message_id, done)
        if request.flags & TransferFlags.SEND_WITH_INV:
            rdma.send_invalidating(self._connection, frame(reply), request.descriptors[0].token)
        else:
            self._connection.send(reply)

    def _move(self, request: TransferRequest, lbuf: memoryview) -> int:
        part = lbuf[request.offset : request.offset + request.length]
        descriptors = trimmed(request.descriptors, request.length)
        try:
            if request.length > rdma.most_bytes(self._connection):
                raise BadRequest(Status.TOO_BIG, request.message_id, f"{request.length} bytes")
            if request.opcode is Opcode.READ_LBUF_TO_DESCS:
                return rdma.write_to_peer(self._connection, descriptors, part)
            return rdma.read_from_peer(self._connection, descriptors, part)
        except OSError as e:
            unknown = e.errno in _NO_SUCH_CALL
            status = Status.NOT_SUPPORTED if unknown else Status.RDMA_FAILED
            raise BadRequest(status, request.message_id, str(e)) from e


class EchoServer:
    """Serves on listening sockets until it is told to stop.

    :param listeners: sockets of :func:`~smbdirect_testbed.echo.connection.listen`; closed by us
    :param say: takes a line about a connection that ended by the peer's fault, or by ours
    """

    def __init__(
        self,
        listeners: Iterable[tuple[socket.socket, Transport]],
        limits: Limits | None = None,
        *,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.crashes = 0
        """Connections that ended by an error of ours; what a peer sends must never cause one."""
        self.served = 0
        self._limits = limits or Limits()
        self._say = say
        self._listeners = list(listeners)
        self._connections: dict[Connection, threading.Thread] = {}
        self._lock = threading.Lock()
        self._waker, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        # Closes the listeners: whoever left the context must not be accepted any more.
        self._thread.join(_JOIN_TIMEOUT)
        self.join()

    def stop(self) -> None:
        """Make :meth:`run` return; may be called from a signal handler."""
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    def run(self) -> None:
        """Accept and serve until :meth:`stop`; then close all connections."""
        try:
            with DefaultSelector() as selector:
                selector.register(self._woken, EVENT_READ)
                for listener, transport in self._listeners:
                    selector.register(listener, EVENT_READ, transport)
                while True:
                    for key, _ in selector.select():
                        if key.fileobj is self._woken:
                            return
                        assert isinstance(key.fileobj, socket.socket)
                        self._accept(key.fileobj, key.data)
        finally:
            for listener, _ in self._listeners:
                listener.close()
            self.join()

    def join(self) -> None:
        """Close all connections and wait for their threads."""
        with self._lock:
            running = dict(self._connections)
        for connection in running:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
        for thread in running.values():
            thread.join(_JOIN_TIMEOUT)

    def _accept(self, listener: socket.socket, transport: Transport) -> None:
        try:
            accepted, _peer = listener.accept()
        except BlockingIOError:
            return
        except OSError as e:
            # A client that is gone already, or a lack that will pass; never a reason to end.
            self._say(f"accept over {transport}: {e}")
            return
        with self._lock:
            full = len(self._connections) >= self._limits.connections
        if full:
            self._say(f"closed a connection: {self._limits.connections} are served already")
            accepted.close()
            return
        try:
            connection = Connection(accepted, transport, patience=self._limits.patience)
        except OSError as e:
            self._say(f"a connection over {transport} ended at once: {e}")
            accepted.close()
            return
        thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
        with self._lock:
            self._connections[connection] = thread
            self.served += 1
        thread.start()

    def _serve(self, connection: Connection) -> None:
        try:
            with connection:
                _Session(connection, self._limits).run()
        except Disconnected as e:
            if e.within_frame:
                self._say(f"a client over {connection.transport} left within a frame: {e}")
        except (NotThisProtocol, FrameTooBig, OSError) as e:
            self._say(f"closed a connection over {connection.transport}: {e}")
        except Exception:
            self.crashes += 1
            self._say(f"a connection over {connection.transport} crashed")
            traceback.print_exc(file=sys.stderr)
        finally:
            with self._lock:
                del self._connections[connection]
