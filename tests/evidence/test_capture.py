"""The capture: pcap files that grow, markers, and the proof of the transport."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.helpers.captured_frames import ROCE_SEND, frame, record, roce, tcp, udp

from smbdirect_testbed.config.spec import RdmaType, Transport
from smbdirect_testbed.evidence import pcap
from smbdirect_testbed.evidence.capture import TransportNotProven, Wire, WireCapture
from smbdirect_testbed.evidence.frames import count
from smbdirect_testbed.evidence.pcap import GrowingPcap
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.machine.host import HostEnd


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
        agent = SimpleNamespace(mark_capture=self.mark_capture)
        self.machine = SimpleNamespace(required_agent=lambda: agent)
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

    def mark_capture(
        self, namespaces_of: int, label: str, addresses: list[str], rdma_links: list[str]
    ) -> dict[str, Any]:
        assert namespaces_of == 7
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


def test_what_packets_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient(tmp_path, 1)
    wire = capture(client)
    shown = Wire(wire, wire.moment())
    client.wire(tcp(445, b"a secret"))
    assert shown.shows(b"a secret")
    assert not shown.shows(b"another")
    wire.cut(tmp_path / "slice.pcap")
    assert not shown.shows(b"a secret")
    monkeypatch.setattr("smbdirect_testbed.evidence.capture._LARGEST_SLICE", 0)
    with pytest.raises(ProvisionError, match="not all packets were kept"):
        shown.shows(b"another")


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
