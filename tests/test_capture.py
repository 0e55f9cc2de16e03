"""The wire: pcap files that grow, classified frames, counters, markers, and the proof."""

from __future__ import annotations

import struct
from collections import Counter
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smbdirect_testbed import pcap
from smbdirect_testbed.capture import TransportNotProven, Wire, WireCapture
from smbdirect_testbed.counters import Counters, Growth
from smbdirect_testbed.errors import ProvisionError
from smbdirect_testbed.host import HostEnd
from smbdirect_testbed.pcap import GrowingPcap, Record
from smbdirect_testbed.spec import RdmaType, Transport
from smbdirect_testbed.traffic import Direction, Kind, Traffic, classify, count, objection

ROCE_SEND, ROCE_ACK, ROCE_READ_RESPONSE, ROCE_WRITE, ROCE_CM = 4, 0x11, 0x10, 0x0A, 0x64


def header(protocol: int, *, sent: bool, link: int = 4) -> bytes:
    """As of LINUX_SLL2: an outgoing packet, or one to this host."""
    return struct.pack(">HHIHBB8x", protocol, 0, link, 1, 4 if sent else 0, 6)


def frame(protocol: int, payload: bytes, *, sent: bool = True, ipv6: bool = False) -> bytes:
    if ipv6:
        ip = struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + bytes(32)
        return header(0x86DD, sent=sent) + ip + payload
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + bytes(8)
    return header(0x0800, sent=sent) + ip + payload


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
    assert taken == records


@pytest.mark.parametrize(
    "data", [b"x" * 24, struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 9, 113)]
)
def test_no_pcap(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ProvisionError, match="not a pcap file of LINUX_SLL2"):
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
    pid = 7

    def __init__(self, directory: Path, links: int) -> None:
        self.ends = tuple(
            HostEnd(
                f"veth{n}",
                "02:00:00:00:00:01",
                IPv4Interface(f"10.7.{n}.2/24"),
                IPv6Interface(f"fd07:{n}::2/64"),
                RdmaType.RXE,
                f"rxe{n}",
                "server",
            )
            for n in range(links)
        )
        self.machine = SimpleNamespace(agent=SimpleNamespace(call=self.call))
        self.addresses = [IPv4Address(f"10.7.{n}.1") for n in range(links)]
        self.file = directory / "capture.pcap"
        pcap.write(self.file, [])
        self.deaf: set[int] = set()
        self.between: list[bytes] = []
        self.sent = 0
        self.clock = 0

    def wire(self, *frames: bytes) -> None:
        with self.file.open("ab") as file:
            for data in frames:
                self.clock += 1
                record_header, body = record(data, self.clock)
                file.write(record_header + body)

    def call(
        self, do: str, place: int, label: str, addresses: list[str], rdma_links: list[str]
    ) -> dict[str, Any]:
        assert (do, place) == ("mark", 7)
        assert addresses == [str(address) for address in self.addresses]
        for n, address in enumerate(addresses):
            if n in self.deaf:
                continue
            marker = udp(9, f"{label} {address}.".encode())
            for _ in range(2):
                self.wire(marker)
            self.wire(frame(1, b"\x03\x03" + bytes(6) + marker[20:], sent=False))
            self.wire(*self.between)
        return {"rdma": {link: [self.sent, self.sent] for link in rdma_links}, "snmp": ""}


def capture(client: Any, timeout: float = 5) -> WireCapture:
    file = GrowingPcap(client.file)
    log = client.file.with_name("tcpdump.log")
    return WireCapture(client, client.addresses, file, log, timeout=timeout)


def frames(path: Path) -> list[bytes]:
    return [r.frame for r in GrowingPcap(path).take()]


def test_slices(tmp_path: Path) -> None:
    client = FakeClient(tmp_path, 2)
    watched = capture(client)
    a, b, c, d = tcp(445), tcp(139), roce(ROCE_SEND), tcp(5445, sent=False)
    client.wire(a, b, c)
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
    assert second.traffic - first.traffic == count([b], set())


def test_what_comes_before_the_last_links_marker_belongs_to_the_past(tmp_path: Path) -> None:
    client = FakeClient(tmp_path, 2)
    client.between = [tcp(445)]
    watched = capture(client)
    for number in (1, 3, 5):
        # One comes between the two markers, and one after the second.
        assert sum(watched.moment().traffic.values()) == number
    client.deaf = {1}
    with pytest.raises(ProvisionError, match="a marker in the capture of client"):
        capture(client, timeout=0.05).moment()


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
    client.deaf = {0}
    with pytest.raises(ProvisionError, match="a marker in the capture of client"):
        watched.moment()
    client.deaf = set()
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
    watched = capture(FakeClient(tmp_path, 1))
    assert watched.lost() == 0
    (tmp_path / "tcpdump.log").write_text(
        "10 packets captured\n12 packets received by filter\n2 packets dropped by kernel\n"
    )
    assert watched.lost() == 2
