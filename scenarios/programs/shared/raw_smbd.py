"""One end of an RDMA connection that speaks [MS-SMBD] as badly as it is told to.

Runs in a machine that has pyverbs. The queue pair is made here and not by librdmacm, so that
every request to the device is possible, and every step of connecting can be left out.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import struct
import time
from pathlib import Path
from types import FrameType

from pyverbs.cmid import CMID, AddrInfo, CMEvent, CMEventChannel, ConnParam
from pyverbs.cq import CQ
from pyverbs.libibverbs_enums import (
    IBV_ACCESS_LOCAL_WRITE,
    IBV_QPS_INIT,
    IBV_QPS_RTR,
    IBV_QPS_RTS,
    IBV_QPT_RC,
    IBV_WC_RECV,
    IBV_WC_SUCCESS,
    IBV_WR_ATOMIC_FETCH_AND_ADD,
    IBV_WR_SEND,
)
from pyverbs.librdmacm_enums import RAI_PASSIVE, RDMA_PS_TCP
from pyverbs.mr import MR
from pyverbs.pyverbs_error import PyverbsRDMAError
from pyverbs.qp import QP, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

_REQUEST = struct.Struct("<HHHHIII")
_RESPONSE = struct.Struct("<HHHHHHIIIII")
_DATA = struct.Struct("<HHHHIII")
HEADER_SIZE = 24
"""Of a message with data, padding included."""
NOT_SUPPORTED = 0xC00000BB
"""STATUS_NOT_SUPPORTED"""
RESPONSE_REQUESTED = 1

_STEP = 10.0
"""Seconds that a step of connecting may take."""
_ROOM = 1 << 14
"""Bytes of a receive buffer."""
_BUFFERS = 64
_PAUSE = 0.0002
"""Seconds between two looks at what the device has done."""
_SENDING = 1 << 17
_LONG = 0.05
"""Seconds after which a wait for the device looks whether the connection is still there."""


_kept: list[Peer] = []
"""Until the process ends: pyverbs would close their parts in the wrong order."""


class Impossible(Exception):
    """The device does not do that."""


class Ended(Exception):
    """The connection is no more, or never was; its argument says what told so."""


def request(
    *,
    min_version: int = 0x100,
    max_version: int = 0x100,
    reserved: int = 0,
    credits_requested: int = 64,
    preferred_send: int = 8192,
    max_receive: int = 8192,
    max_fragmented: int = 1 << 20,
) -> bytes:
    """A negotiate request, [MS-SMBD] 2.2.1."""
    sizes = (preferred_send, max_receive, max_fragmented)
    return _REQUEST.pack(min_version, max_version, reserved, credits_requested, *sizes)


def response(
    *,
    min_version: int = 0x100,
    max_version: int = 0x100,
    negotiated: int = 0x100,
    reserved: int = 0,
    credits_requested: int = 64,
    credits_granted: int = _BUFFERS - 4,
    status: int = 0,
    max_read_write: int = 1 << 20,
    preferred_send: int = 8192,
    max_receive: int = 8192,
    max_fragmented: int = 1 << 20,
) -> bytes:
    """A negotiate response, [MS-SMBD] 2.2.2."""
    versions = (min_version, max_version, negotiated, reserved)
    sizes = (max_read_write, preferred_send, max_receive, max_fragmented)
    return _RESPONSE.pack(*versions, credits_requested, credits_granted, status, *sizes)


def data(
    payload: bytes = b"",
    *,
    credits_requested: int = 64,
    credits_granted: int = 0,
    flags: int = 0,
    reserved: int = 0,
    remaining: int = 0,
    offset: int | None = None,
    length: int | None = None,
) -> bytes:
    """A data transfer message, [MS-SMBD] 2.2.3; offset and length fit the payload by default."""
    head = _DATA.pack(
        credits_requested,
        credits_granted,
        flags,
        reserved,
        remaining,
        (HEADER_SIZE if payload else 0) if offset is None else offset,
        len(payload) if length is None else length,
    )
    return head + bytes(4) + payload if payload else head


class Peer:
    """One end.

    :param retries: of what this end sends while the other has no buffer for it; 7: for ever
    """

    def __init__(self, *, resources: int = 8, depth: int = 8, retries: int = 0) -> None:
        signal.signal(signal.SIGALRM, _nothing)
        _kept.append(self)
        self._limits = {"resources": resources, "depth": depth, "rnr_retry": 0}
        self._retries = retries
        self._channel = CMEventChannel()
        self._id = CMID(creator=self._channel, port_space=RDMA_PS_TCP)
        self._arrived: list[tuple[int, bytes]] = []
        self._sent: list[str] = []
        self._ended = ""
        self.wanted = 64
        """Credits that the other side asked for last."""
        self.credits = 0
        """Credits that the other side granted when it accepted."""

    # Connecting.

    def resolve(self, address: str, port: int) -> None:
        info = AddrInfo(dst=address, dst_service=str(port), port_space=RDMA_PS_TCP)
        self._id.resolve_addr(info, int(_STEP * 1000))
        self._expect("ADDR_RESOLVED")
        self._id.resolve_route(int(_STEP * 1000))
        self._expect("ROUTE_RESOLVED")
        self._make_queues()

    def connect(self, address: str, port: int, *, establish: bool = True) -> None:
        """Connect, without negotiating.

        :param establish: say that the answer has arrived
        :raises Ended: the other side does not want to
        """
        self.resolve(address, port)
        self.ask()
        answer = self._expect("CONNECT_RESPONSE", "ESTABLISHED")
        self._to(IBV_QPS_RTR)
        self._to(IBV_QPS_RTS)
        if establish and answer == "CONNECT_RESPONSE":
            self._id.establish()

    def ask(self) -> None:
        """Send the connection request, and wait for nothing."""
        self._id.connect(ConnParam(qp_num=self._qp.qp_num, **self._limits))

    def listen(self, address: str, port: int) -> None:
        service = str(port)
        info = AddrInfo(src=address, src_service=service, port_space=RDMA_PS_TCP, flags=RAI_PASSIVE)
        self._id.bind_addr(info)
        self._listener = self._id
        self._listener.listen(4)

    def requested(self) -> None:
        """Wait until somebody wants to connect."""
        event = self._wait(_STEP)
        if event is None:
            raise Ended("nobody connected")
        self._id = CMID(creator=event, listen_id=self._listener)
        event.ack_cm_event()

    def accept(self, *, buffers: bool = True) -> None:
        self._make_queues(buffers=buffers)
        self._to(IBV_QPS_RTR)
        self._to(IBV_QPS_RTS)
        self._id.accept(ConnParam(qp_num=self._qp.qp_num, **self._limits))
        self._expect("ESTABLISHED")

    def reject(self) -> None:
        self._id.reject()

    def negotiate(self, message: bytes = b"") -> None:
        """Negotiate as a client.

        :raises Ended: there was no good answer
        """
        self.send(message or request())
        answer = self.receive(_STEP)
        if len(answer) < _RESPONSE.size or refused(answer):
            raise Ended("refused")
        self.wanted, self.credits = _RESPONSE.unpack_from(answer)[4:6]

    # Messages.

    def send(
        self,
        message: bytes,
        opcode: int = IBV_WR_SEND,
        *,
        key: int = 0,
        remote: int = 0,
        wait: bool = True,
    ) -> str:
        """Send a message, or whatever the opcode says; how the device completed it.

        :param key: the other side's memory, or immediate data
        :param wait: until that is known, or the connection has ended; else the result is empty
        :raises Impossible: the device has no such operation
        """
        at = self._slots * _ROOM
        self._memory.write(message, len(message), at)
        sge = [SGE(self._memory.buf + at, len(message), self._memory.lkey)]
        work = SendWR(opcode=opcode, num_sge=1, sg=sge, imm_data=key)
        if opcode == IBV_WR_ATOMIC_FETCH_AND_ADD:
            work.set_wr_atomic(key, remote, 1)
        elif opcode != IBV_WR_SEND:
            work.set_wr_rdma(key, remote)
        before = len(self._sent)
        try:
            self._qp.post_send(work)
        except PyverbsRDMAError as e:
            if opcode == IBV_WR_SEND or abs(e.error_code) not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            raise Impossible from e
        begun = time.monotonic()
        while wait and len(self._sent) == before and time.monotonic() < begun + _STEP:
            self._poll()
            time.sleep(_PAUSE)
            if time.monotonic() > begun + _LONG and self.ended(_PAUSE):
                break
        return self._sent[-1] if len(self._sent) > before else ""

    def receive(self, seconds: float) -> bytes:
        """The next message of the other side; its buffer is posted again.

        :raises Ended: the connection ended, or nothing came in time
        """
        deadline = time.monotonic() + seconds
        while not self._arrived:
            if time.monotonic() > deadline:
                raise Ended("silence")
            self._poll()
            # While this looks for the end, the last message may arrive.
            if not self._arrived and (ended := self.ended(0.001)) and not self._arrived:
                raise Ended(ended)
        slot, message = self._arrived.pop(0)
        self._post(slot)
        return message

    def grants(self, seconds: float) -> int:
        """The credits in the other side's next message, 0 if there is none in time.

        :raises Ended: the connection ended
        """
        try:
            return int(_DATA.unpack_from(self.receive(seconds))[1])
        except Ended:
            if self._ended:
                raise
            return 0

    def granted(self, seconds: float) -> None:
        """Wait until the other side, a client, grants credits: before, it need not have a buffer.

        :raises Ended: the connection ended, or nothing came in time
        """
        while not _DATA.unpack_from(self.receive(seconds))[1]:
            pass

    def frame(self, seconds: float, *, grant: int = 1) -> bytes:
        """The other side's next frame; each of its messages is answered with credits.

        :raises Ended: the connection ended, or nothing came in time
        """
        got = b""
        while True:
            message = self.receive(seconds)
            wanted, _, _, _, remaining, offset, length = _DATA.unpack_from(message)
            self.wanted = wanted
            if grant:
                self.send(data(credits_granted=grant))
            got += message[offset : offset + length]
            if length and not remaining:
                return got

    def ended(self, seconds: float) -> str:
        """What told within some time that the other side has ended the connection; or nothing."""
        deadline = time.monotonic() + seconds
        while not self._ended and (left := deadline - time.monotonic()) > 0:
            event = self._wait(min(left, 0.2))
            if event is not None:
                self._ended = _title(event)
                event.ack_cm_event()
            self._poll()
        return self._ended

    def disconnect(self) -> None:
        """Disconnect, if there is a connection."""
        with contextlib.suppress(PyverbsRDMAError):
            self._id.disconnect()

    # The device.

    def _make_queues(self, *, buffers: bool = True) -> None:
        self._slots = _BUFFERS
        self._cq = CQ(self._id.context, 2 * _BUFFERS + 512)
        room = QPCap(max_send_wr=512, max_recv_wr=_BUFFERS, max_send_sge=1, max_recv_sge=1)
        wanted = QPInitAttr(qp_type=IBV_QPT_RC, scq=self._cq, rcq=self._cq, cap=room)
        self._qp = QP(self._id.pd, wanted)
        self._memory = MR(self._id.pd, self._slots * _ROOM + _SENDING, IBV_ACCESS_LOCAL_WRITE)
        self._to(IBV_QPS_INIT)
        for slot in range(self._slots if buffers else 0):
            self._post(slot)

    def _to(self, state: int) -> None:
        """Bring the queue pair into a state; on iWARP the kernel does all but the first step."""
        if state != IBV_QPS_INIT and self._is_iwarp():
            return
        attributes, mask = self._id.init_qp_attr(state)
        if state == IBV_QPS_RTS:
            attributes.rnr_retry = self._retries
        self._qp.modify(attributes, mask)

    def _is_iwarp(self) -> bool:
        kind = Path(f"/sys/class/infiniband/{self._id.context.name}/node_type").read_text()
        return "RNIC" in kind

    def _post(self, slot: int) -> None:
        sge = [SGE(self._memory.buf + slot * _ROOM, _ROOM, self._memory.lkey)]
        self._qp.post_recv(RecvWR(wr_id=slot + 1, num_sge=1, sg=sge))

    def _poll(self) -> None:
        """Note what the device has done."""
        for done in self._cq.poll(16)[1]:
            good = done.status == IBV_WC_SUCCESS
            if done.wr_id and good and done.opcode & IBV_WC_RECV:
                slot = done.wr_id - 1
                text = self._memory.read(done.byte_len, slot * _ROOM)
                self._arrived.append((slot, text))
            elif not done.wr_id:
                self._sent.append("ok" if good else f"status {done.status}")

    def _expect(self, *wanted: str) -> str:
        event = self._wait(_STEP)
        title = "silence" if event is None else _title(event)
        if event is not None:
            event.ack_cm_event()
        if title not in wanted:
            raise Ended(title)
        return title

    def _wait(self, seconds: float) -> CMEvent | None:
        """The connection manager's next event, unless none comes."""
        # librdmacm waits for ever, but for signals; one alone might come before it waits.
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), 0.05)
        try:
            return CMEvent(self._channel)
        except PyverbsRDMAError:
            return None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def refused(answer: bytes) -> bool:
    """Is it a negotiate response with STATUS_NOT_SUPPORTED?"""
    return len(answer) == _RESPONSE.size and _RESPONSE.unpack(answer)[6] == NOT_SUPPORTED


def _title(event: CMEvent) -> str:
    return str(event.event_str()).removeprefix("RDMA_CM_EVENT_")


def _nothing(number: int, frame: FrameType | None) -> None:
    pass
