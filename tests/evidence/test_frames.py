"""What frames say of the transport, and the counters that are a second witness."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

import pytest
from tests.helpers.captured_frames import (
    ROCE_ACK,
    ROCE_CM,
    ROCE_READ_RESPONSE,
    ROCE_SEND,
    ROCE_WRITE,
    header,
    roce,
    tcp,
    udp,
)

from smbdirect_testbed.config.spec import Transport
from smbdirect_testbed.evidence.counters import Counters, Growth
from smbdirect_testbed.evidence.frames import Direction, Kind, Traffic, classify, objection


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("sent", [False, True])
def test_classes(sent: bool, ipv6: bool) -> None:
    how: dict[str, Any] = {"sent": sent, "ipv6": ipv6}
    assert classify(tcp(445, **how), set()) is Kind.TCP_445
    assert classify(tcp(139, **how), set()) is Kind.TCP_139
    assert classify(tcp(5445, **how), set()) is Kind.TCP_5445
    assert classify(tcp(22, **how), set()) is Kind.TCP_OTHER
    assert classify(roce(ROCE_SEND, **how), set()) is Kind.ROCE_SEND
    for opcode in (ROCE_ACK, ROCE_READ_RESPONSE, ROCE_WRITE):
        assert classify(roce(opcode, **how), set()) is Kind.ROCE_OTHER
    assert classify(roce(ROCE_CM, **how), set()) is Kind.ROCE_CM
    assert classify(udp(53, b"", **how), set()) is Kind.OTHER


@pytest.mark.parametrize("ipv6", [False, True])
def test_iwarp_is_known_by_how_it_begins(ipv6: bool) -> None:
    iwarp: set[frozenset[bytes]] = set()
    answer: dict[str, Any] = {"sent": False, "ipv6": ipv6}
    assert classify(tcp(5445, b"", ipv6=ipv6), iwarp) is Kind.OTHER
    assert classify(tcp(5445, b"MPA ID Req Frame@", ipv6=ipv6), iwarp) is Kind.IWARP
    assert classify(tcp(5445, b"MPA ID Rep Frame@", **answer), iwarp) is Kind.IWARP
    assert classify(tcp(5445, b"anything", ipv6=ipv6), iwarp) is Kind.IWARP
    assert classify(tcp(5445, b"", **answer), iwarp) is Kind.OTHER
    # Another connection, and another protocol on it.
    other = tcp(5445, b"\0\0\0\xf0\xfeSMB", ipv6=ipv6).replace(
        struct.pack(">H", 40000), struct.pack(">H", 40001)
    )
    assert classify(other, iwarp) is Kind.TCP_5445


def test_what_has_no_ports() -> None:
    fragment = bytearray(tcp(445))
    fragment[26:28] = b"\x00\x10"
    arp = header(0x0806, sent=True) + bytes(28)
    for data in (bytes(fragment), arp, b"", tcp(445)[:36], roce(ROCE_SEND)[:48]):
        assert classify(data, set()) is Kind.OTHER


def test_ipv4_options_are_skipped() -> None:
    plain = tcp(445)
    options = plain[:20] + b"\x46" + plain[21:40] + bytes(4) + plain[40:]
    assert classify(options, set()) is Kind.TCP_445


def traffic(**numbers: int) -> Traffic:
    """``send_s=5``: five frames of that kind sent; ``_r`` for received."""
    kinds = {
        "send": Kind.ROCE_SEND,
        "iwarp": Kind.IWARP,
        "ack": Kind.ROCE_OTHER,
        "cm": Kind.ROCE_CM,
        "tcp445": Kind.TCP_445,
        "tcp139": Kind.TCP_139,
        "tcp5445": Kind.TCP_5445,
        "tcp": Kind.TCP_OTHER,
    }
    directions = {"s": Direction.SENT, "r": Direction.RECEIVED}
    found: Traffic = Counter()
    for name, number in numbers.items():
        kind, _, direction = name.partition("_")
        found[kinds[kind], directions[direction]] = number
    return found


SMBDIRECT = traffic(send_s=20, send_r=20, ack_s=9, cm_s=3, cm_r=2)


@pytest.mark.parametrize(
    ("transport", "seen", "message"),
    [
        (Transport.SMBDIRECT, SMBDIRECT, None),
        (Transport.SMBDIRECT, traffic(iwarp_s=20, iwarp_r=20), None),
        (
            Transport.SMBDIRECT,
            traffic(iwarp_s=20, iwarp_r=3),
            "SMB did not go over SMB-Direct: 3 iWARP segments received by the client, "
            "no TCP segment on ports 139, 445 and 5445 either",
        ),
        (
            Transport.TCP,
            traffic(iwarp_s=20, iwarp_r=20),
            "SMB went over SMB-Direct, not over tcp (TCP port 445): 40 iWARP segments, "
            "0 TCP segments",
        ),
        (
            Transport.SMBDIRECT,
            traffic(tcp445_s=7, tcp445_r=5),
            "SMB went over TCP, not SMB-Direct: 12 TCP segments on port 445, 0 RoCEv2 packets",
        ),
        (
            Transport.SMBDIRECT,
            SMBDIRECT + traffic(tcp5445_s=1),
            "SMB went over TCP as well as SMB-Direct: 1 TCP segment on port 5445, "
            "49 RoCEv2 packets",
        ),
        (
            Transport.SMBDIRECT,
            traffic(send_s=20, send_r=1, cm_s=3),
            "SMB did not go over SMB-Direct: 1 RoCEv2 send received by the client, "
            "no TCP segment on ports 139, 445 and 5445 either",
        ),
        (
            Transport.SMBDIRECT,
            traffic(),
            "SMB did not go over SMB-Direct: 0 RoCEv2 sends sent by the client, "
            "no TCP segment on ports 139, 445 and 5445 either",
        ),
        (Transport.TCP, traffic(tcp445_s=7, tcp445_r=5), None),
        (Transport.TCP, traffic(tcp445_s=7, tcp445_r=5, cm_s=2, cm_r=2), None),
        (
            Transport.TCP,
            SMBDIRECT,
            "SMB went over SMB-Direct, not over tcp (TCP port 445): 49 RoCEv2 packets, "
            "0 TCP segments",
        ),
        (
            Transport.TCP,
            SMBDIRECT + traffic(tcp445_s=2),
            "SMB went over SMB-Direct as well as TCP, not over tcp (TCP port 445): "
            "49 RoCEv2 packets, 2 TCP segments on port 445",
        ),
        (
            Transport.TCP,
            traffic(tcp445_s=7, tcp445_r=5, tcp139_s=1),
            "SMB did not go over tcp (TCP port 445) alone: 12 TCP segments on port 445, "
            "1 TCP segment on port 139",
        ),
        (
            Transport.TCP,
            traffic(tcp445_s=3),
            "SMB did not go over tcp (TCP port 445): no TCP segment received by the client",
        ),
        (Transport.NBT, traffic(tcp139_s=7, tcp139_r=5), None),
        (
            Transport.NBT,
            traffic(tcp445_s=7, tcp445_r=5),
            "SMB did not go over nbt (TCP port 139) alone: 12 TCP segments on port 445",
        ),
    ],
)
def test_objections(transport: Transport, seen: Traffic, message: str | None) -> None:
    assert objection(seen, transport) == message


def counted(number: int, *, own_stack: bool = True) -> Counters:
    snmp = f"Ip: A B\nIp: 1 2\nTcp: RtoAlgorithm InSegs OutSegs\nTcp: 1 5{number} 6{number}\n"
    return Counters.of({"rxe0": [10 + number, 20 + number]}, snmp, own_stack=own_stack)


def test_counters() -> None:
    before, after = counted(0), counted(5)
    assert after.since(before) == Growth((5, 5), 5)
    assert counted(5, own_stack=False).since(before) == Growth((5, 5), None)
    made_anew = Counters({"rxe0": (1, 1)}, after.tcp, own_stack=True)
    assert made_anew.since(before) == Growth(None, 5)
    assert Counters({"rxe1": (9, 9)}).since(before).rdma is None
    nothing = Counters.of({}, "", own_stack=True)
    assert nothing.since(nothing) == Growth(None, None)


@pytest.mark.parametrize(
    ("transport", "seen", "growth", "message"),
    [
        (Transport.SMBDIRECT, SMBDIRECT, Growth((40, 40), 0), None),
        (Transport.SMBDIRECT, SMBDIRECT, Growth(None, None), None),
        (Transport.SMBDIRECT, SMBDIRECT, Growth((40, 0), 0), "port counters of the RDMA links"),
        (Transport.SMBDIRECT, SMBDIRECT, Growth((40, 40), 99), "the client sent 99 TCP segments"),
        (Transport.TCP, traffic(tcp445_s=9, tcp445_r=9), Growth((0, 0), 40), None),
        (Transport.TCP, traffic(tcp445_s=9, tcp445_r=9), Growth((50, 50), 40), "100 packets"),
        (Transport.TCP, traffic(tcp445_s=9, tcp445_r=9), Growth((0, 0), 0), "did not move"),
    ],
)
def test_counters_contradict(
    transport: Transport, seen: Traffic, growth: Growth, message: str | None
) -> None:
    said = growth.objection(transport, seen)
    assert said is None if message is None else message in (said or "")
