"""The wire: pcap files that grow, classified frames, counters, markers, and the proof."""

from __future__ import annotations

import struct
from collections import Counter
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Any

import pytest

from smbdirect_testbed import pcap
from smbdirect_testbed.capture import LinkCapture, TransportNotProven, Wire, WireCapture
from smbdirect_testbed.counters import Counters, Growth
from smbdirect_testbed.errors import ProvisionError
from smbdirect_testbed.host import HostEnd
from smbdirect_testbed.pcap import GrowingPcap, Record
from smbdirect_testbed.process import CommandResult
from smbdirect_testbed.spec import RdmaType, Transport
from smbdirect_testbed.traffic import Direction, Kind, Traffic, classify, count, objection

CLIENT_MAC, SERVER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
ROCE_SEND, ROCE_ACK, ROCE_READ_RESPONSE, ROCE_WRITE, ROCE_CM = 4, 0x11, 0x10, 0x0A, 0x64


def frame(protocol: int, payload: bytes, *, sent: bool = True, ipv6: bool = False) -> bytes:
    macs = SERVER_MAC + CLIENT_MAC if sent else CLIENT_MAC + SERVER_MAC
    if ipv6:
        ip = struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + bytes(32)
        return macs + b"\x86\xdd" + ip + payload
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + bytes(8)
    return macs + b"\x08\x00" + ip + payload


def tcp(port: int, data: bytes = b"data", *, sent: bool = True, ipv6: bool = False) -> bytes:
    ports = (40000, port) if sent else (port, 40000)
    header = struct.pack(">HHIIBBHHH", *ports, 0, 0, 5 << 4, 0, 0, 0, 0)
    return frame(6, header + data, sent=sent, ipv6=ipv6)


def udp(port: int, payload: bytes, *, sent: bool = True, ipv6: bool = False) -> bytes:
    header = struct.pack(">HHHH", 49152, port, 8 + len(payload), 0)
    return frame(17, header + payload, sent=sent, ipv6=ipv6)


def roce(opcode: int, *, sent: bool = True, ipv6: bool = False) -> bytes:
    return udp(4791, bytes([opcode]) + bytes(100), sent=sent, ipv6=ipv6)


def record(data: bytes, at: float = 0) -> Record:
    return Record(struct.pack("<IIII", int(at), 0, len(data), len(data)), data)


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
    fragment[20:22] = b"\x00\x10"
    arp = CLIENT_MAC + SERVER_MAC + b"\x08\x06" + bytes(28)
    for data in (bytes(fragment), arp, b"", tcp(445)[:30], roce(ROCE_SEND)[:42]):
        assert classify(data, set()) is Kind.OTHER


def test_ipv4_options_are_skipped() -> None:
    plain = tcp(445)
    options = plain[:14] + b"\x46" + plain[15:34] + bytes(4) + plain[34:]
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


COUNTERS = """\
rdma rxe0 1{0} 2{0}
Tcp: RtoAlgorithm InSegs OutSegs
Tcp: 1 5{0} 6{0}
own stack
"""


def test_counters() -> None:
    before, after = Counters.parse(COUNTERS.format(0)), Counters.parse(COUNTERS.format(5))
    assert after.since(before) == Growth((5, 5), 5)
    shared = Counters.parse(COUNTERS.format(5).replace("own stack", ""))
    assert shared.since(before) == Growth((5, 5), None)
    made_anew = Counters({"rxe0": (1, 1)}, after.tcp, own_stack=True)
    assert made_anew.since(before) == Growth(None, 5)
    assert Counters({"rxe1": (9, 9)}).since(before).rdma is None
    assert Counters.parse("").since(Counters.parse("")) == Growth(None, None)


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


def test_growing_pcap(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    records = [record(tcp(445), n) for n in range(20)]
    pcap.write(tmp_path / "whole.pcap", records)
    whole = (tmp_path / "whole.pcap").read_bytes()
    growing = GrowingPcap(path)
    assert growing.take() == []
    taken = []
    for length in range(0, len(whole) + 1, 13):
        path.write_bytes(whole[:length])
        taken += growing.take()
    path.write_bytes(whole)
    taken += growing.take()
    assert taken == records
    assert [r.time for r in taken] == [(n, 0) for n in range(20)]


@pytest.mark.parametrize(
    "data", [b"x" * 24, struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 9, 113)]
)
def test_no_pcap(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ProvisionError, match="not a pcap file of Ethernet"):
        GrowingPcap(tmp_path / "x").take()


def test_damaged_pcap(tmp_path: Path) -> None:
    pcap.write(tmp_path / "x", [record(b"")])
    with (tmp_path / "x").open("ab") as file:
        file.write(b"\xff" * 100)
    with pytest.raises(ProvisionError, match="damaged"):
        GrowingPcap(tmp_path / "x").take()


class FakeClient:
    """A client whose markers come through, after the frames that a test puts on the wire."""

    name = "client"

    def __init__(self, directory: Path, links: int) -> None:
        self.ends = tuple(
            HostEnd(
                f"veth{n}",
                CLIENT_MAC.hex(":"),
                IPv4Interface(f"10.7.{n}.2/24"),
                IPv6Interface(f"fd07:{n}::2/64"),
                RdmaType.RXE,
                f"rxe{n}",
                "server",
            )
            for n in range(links)
        )
        self.files = [directory / f"veth{n}.pcap" for n in range(links)]
        for file in self.files:
            pcap.write(file, [])
        self.deaf = False
        self.sent = 0
        self.clock = 0
        self.links = [
            LinkCapture(f"veth{n}", CLIENT_MAC, IPv4Address(f"10.7.{n}.1"), GrowingPcap(f), f)
            for n, f in enumerate(self.files)
        ]

    def wire(self, *frames: bytes, link: int = 0) -> None:
        with self.files[link].open("ab") as file:
            for data in frames:
                self.clock += 1
                header, body = record(data, self.clock)
                file.write(header + body)

    def run(self, command: list[str]) -> CommandResult:
        label, devices, *addresses = command[4:]
        assert devices == " ".join(f"rxe{n}" for n in range(len(self.files)))
        assert addresses == [f"10.7.{n}.1" for n in range(len(self.files))]
        for n in range(0 if self.deaf else len(self.files)):
            marker = udp(9, label.encode())
            self.wire(marker, frame(1, b"\x03\x03" + bytes(6) + marker[14:], sent=False), link=n)
        text = f"rdma rxe0 {self.sent} {self.sent}\nown stack\n"
        return CommandResult(tuple(command), 0, text, "")


def capture(client: Any, timeout: float = 5) -> WireCapture:
    return WireCapture(client, client.links, timeout=timeout)


def frames(path: Path) -> list[bytes]:
    return [r.frame for r in GrowingPcap(path).take()]


def test_slices(tmp_path: Path) -> None:
    client = FakeClient(tmp_path, 2)
    watched = capture(client)
    a, b, c, d = tcp(445), tcp(139), roce(ROCE_SEND), tcp(5445, sent=False)
    client.wire(a)
    client.wire(b, link=1)
    client.wire(c)
    watched.moment()
    assert watched.cut(tmp_path / "one")
    client.wire(d, a)
    first = watched.moment()
    client.wire(b)
    second = watched.moment()
    assert watched.cut(tmp_path / "two")
    watched.moment()
    assert not watched.cut(tmp_path / "three")
    assert frames(tmp_path / "one") == [a, b, c]
    assert frames(tmp_path / "two") == [d, a, b]
    assert not (tmp_path / "three").exists()
    assert second.traffic - first.traffic == count([b], CLIENT_MAC, set())


def test_marker_1_is_not_taken_for_10(tmp_path: Path) -> None:
    client = FakeClient(tmp_path, 1)
    watched = capture(client)
    for n in range(12):
        client.wire(*[tcp(445)] * n)
        watched.moment()
        watched.cut(path := tmp_path / f"{n}")
        assert len(frames(path) if path.exists() else []) == n


def test_lost_marker(tmp_path: Path) -> None:
    client = FakeClient(tmp_path, 1)
    watched = capture(client, timeout=0.05)
    client.wire(tcp(445))
    client.deaf = True
    with pytest.raises(ProvisionError, match="a marker in the capture of client's veth0"):
        watched.moment()
    client.deaf = False
    client.wire(tcp(139))
    assert sum(watched.moment().traffic.values()) == 2


def test_proof(tmp_path: Path) -> None:
    client = FakeClient(tmp_path, 1)
    watched = capture(client)
    wire = Wire(watched, watched.moment())
    client.wire(*[roce(ROCE_SEND), roce(ROCE_SEND, sent=False)] * 10)
    client.sent = 10
    wire.expect(Transport.SMBDIRECT)
    middle = wire.now()
    client.wire(tcp(445), tcp(445, sent=False))
    wire.expect(Transport.TCP, since=middle)
    with pytest.raises(TransportNotProven, match="SMB went over TCP as well as SMB-Direct"):
        wire.expect(Transport.SMBDIRECT)
    with pytest.raises(TransportNotProven, match="SMB went over TCP, not SMB-Direct: 2 TCP seg"):
        wire.expect(Transport.SMBDIRECT, since=middle)
    assert [p["proven"] for p in wire.proofs] == [True, True, False, False]
    assert wire.proofs[0]["captured"] == {"RoCEv2 send": {"sent": 10, "received": 10}}
    assert wire.proofs[0]["rdma_port_counters"] == (10, 10)


def test_capture_that_lost_packets(tmp_path: Path) -> None:
    client = FakeClient(tmp_path, 1)
    link = client.links[0]
    link.log = tmp_path / "log"
    assert link.lost() == 0
    link.log.write_text(
        "10 packets captured\n12 packets received by filter\n2 packets dropped by kernel\n"
    )
    assert link.lost() == 2
