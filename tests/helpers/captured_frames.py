"""Frames as a client's capture has them."""

from __future__ import annotations

import struct

from smbdirect_testbed.evidence.pcap import Record

_INTERFACE = 4
"""The index of the interface that they came by."""
ROCE_SEND, ROCE_ACK, ROCE_READ_RESPONSE, ROCE_WRITE, ROCE_CM = 4, 0x11, 0x10, 0x0A, 0x64


def header(protocol: int, *, sent: bool) -> bytes:
    """As of LINUX_SLL2: an outgoing packet, or one to this host."""
    return struct.pack(">HHIHBB8x", protocol, 0, _INTERFACE, 1, 4 if sent else 0, 6)


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
