"""Finding out from captured frames how SMB travelled.

RoCEv2 is InfiniBand's base transport header in UDP datagrams to port 4791 (InfiniBand Architecture
Specification, Annex A17); its opcodes are in Volume 1, 9.2. iWARP is a TCP connection that begins
with the key of an MPA frame (RFC 5044, 7.1.1). Frames have the header that Linux's "any" device
gives them, LINUX_SLL2 of the list of link-layer header types of libpcap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

from smbdirect_testbed.config.spec import Transport

_ROCE_PORT = 4791
_IPV4, _IPV6 = 0x0800, 0x86DD
_TCP, _UDP = 6, 17
_HEADER = 20
"""Bytes before the packet: among them the protocol, as in Ethernet, and how it came by here."""
_OUTGOING = 4


class Kind(StrEnum):
    """The kind of a frame, as far as it matters for the transport."""

    TCP_445 = "TCP port 445"
    TCP_139 = "TCP port 139"
    TCP_5445 = "TCP port 5445"
    TCP_OTHER = "TCP, other ports"
    ROCE_SEND = "RoCEv2 send"
    ROCE_OTHER = "RoCEv2 read, write, acknowledge"
    ROCE_CM = "RoCEv2 connection management"
    IWARP = "iWARP"
    OTHER = "other"


class Direction(StrEnum):
    """Which way a frame goes, seen from the client."""

    SENT = "sent"
    RECEIVED = "received"


TCP_KINDS = {Kind.TCP_445: 445, Kind.TCP_139: 139, Kind.TCP_5445: 5445}
"""The ports on which SMB could be carried by TCP."""

_BY_PORT = {port: kind for kind, port in TCP_KINDS.items()}
_EXPECTED = {Transport.TCP: Kind.TCP_445, Transport.NBT: Kind.TCP_139}

Traffic = Counter[tuple[Kind, Direction]]
"""Numbers of frames."""

_FEWEST_SENDS = 4
"""Fewer RoCEv2 sends than this in one direction are no more than the SMB-Direct negotiation."""

_IWARP_PORT = 5445
_MPA_KEYS = (b"MPA ID Req Frame", b"MPA ID Rep Frame")

IwarpConnections = set[frozenset[bytes]]
"""The TCP connections that are iWARP, each by its two ends."""


def classify(frame: bytes, iwarp: IwarpConnections) -> Kind:
    """The kind of a frame.

    :param iwarp: of the frames before this one; a connection's first frame with data adds it
    """
    ip = _HEADER
    ethertype = int.from_bytes(frame[:2])
    if ethertype == _IPV4 and len(frame) > ip + 20:
        if int.from_bytes(frame[ip + 6 : ip + 8]) & 0x1FFF:
            return Kind.OTHER  # a later fragment has no ports
        protocol, at = frame[ip + 9], ip + 4 * (frame[ip] & 15)
        addresses = (frame[ip + 12 : ip + 16], frame[ip + 16 : ip + 20])
        end = ip + int.from_bytes(frame[ip + 2 : ip + 4])
    elif ethertype == _IPV6 and len(frame) > ip + 40:
        protocol, at = frame[ip + 6], ip + 40
        addresses = (frame[ip + 8 : ip + 24], frame[ip + 24 : ip + 40])
        end = at + int.from_bytes(frame[ip + 4 : ip + 6])
    else:
        return Kind.OTHER
    source = int.from_bytes(frame[at : at + 2])
    destination = int.from_bytes(frame[at + 2 : at + 4])
    if protocol == _TCP and len(frame) > at + 12:
        ends = zip(addresses, (frame[at : at + 2], frame[at + 2 : at + 4]), strict=True)
        data = frame[at + 4 * (frame[at + 12] >> 4) : end]
        if _is_iwarp(frozenset(a + p for a, p in ends), data, iwarp):
            return Kind.IWARP if data else Kind.OTHER
        if _IWARP_PORT in (source, destination) and not data:
            # TCP segments without data do not show the purpose of a connection.
            return Kind.OTHER
    if protocol == _TCP:
        return _BY_PORT.get(destination) or _BY_PORT.get(source) or Kind.TCP_OTHER
    if protocol == _UDP and destination == _ROCE_PORT and len(frame) > at + 8:
        return _roce(frame[at + 8])
    return Kind.OTHER


def _is_iwarp(connection: frozenset[bytes], data: bytes, iwarp: IwarpConnections) -> bool:
    if data.startswith(_MPA_KEYS):
        iwarp.add(connection)
    return connection in iwarp


def _roce(opcode: int) -> Kind:
    # The three upper bits are the service: 000 reliable connection, 011 datagram.
    if opcode >> 5 == 3:
        return Kind.ROCE_CM
    if opcode in (0, 1, 2, 3, 4, 5, 0x16, 0x17):
        return Kind.ROCE_SEND
    return Kind.ROCE_OTHER


def count(frames: Iterable[bytes], iwarp: IwarpConnections) -> Traffic:
    """Count the frames of a client by kind and direction.

    :param iwarp: see :func:`classify`
    """
    traffic: Traffic = Counter()
    for frame in frames:
        direction = Direction.SENT if frame[10] == _OUTGOING else Direction.RECEIVED
        traffic[classify(frame, iwarp), direction] += 1
    return traffic


def frames(traffic: Traffic, *kinds: Kind) -> int:
    """How many frames of these kinds went in either direction."""
    return sum(n for (kind, _), n in traffic.items() if kind in kinds)


def objection(traffic: Traffic, transport: Transport) -> str | None:
    """Why these frames do not show that SMB went over ``transport`` alone; None if they do.

    Connection management does not count: a refused attempt to connect carries no SMB.
    """
    iwarp = frames(traffic, Kind.IWARP)
    rdma = iwarp + frames(traffic, Kind.ROCE_SEND, Kind.ROCE_OTHER)
    tcp = {kind: n for kind in TCP_KINDS if (n := frames(traffic, kind))}
    packets = _amount(rdma, "iWARP segment" if iwarp else "RoCEv2 packet")
    segments = ", ".join(
        f"{_amount(n, 'TCP segment')} on port {TCP_KINDS[kind]}" for kind, n in tcp.items()
    )
    if transport is Transport.SMBDIRECT:
        if tcp:
            how = "TCP as well as SMB-Direct" if rdma else "TCP, not SMB-Direct"
            return f"SMB went over {how}: {segments}, {packets}"
        for direction in Direction:
            sends = traffic[Kind.ROCE_SEND, direction] + traffic[Kind.IWARP, direction]
            if sends < _FEWEST_SENDS:
                what = _amount(sends, "iWARP segment" if iwarp else "RoCEv2 send")
                return (
                    f"SMB did not go over SMB-Direct: {what} {direction} "
                    "by the client, no TCP segment on ports 139, 445 and 5445 either"
                )
        return None
    expected = _EXPECTED[transport]
    name = f"{transport} (TCP port {TCP_KINDS[expected]})"
    if rdma:
        how = "SMB-Direct as well as TCP" if tcp else "SMB-Direct"
        return f"SMB went over {how}, not over {name}: {packets}, {segments or '0 TCP segments'}"
    if tcp.keys() - {expected}:
        return f"SMB did not go over {name} alone: {segments}"
    for direction in Direction:
        if not traffic[expected, direction]:
            return f"SMB did not go over {name}: no TCP segment {direction} by the client"
    return None


def _amount(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
