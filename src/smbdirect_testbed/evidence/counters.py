"""The counters of a client's network stack and RDMA links: a proof besides the capture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from smbdirect_testbed.config.spec import Transport
from smbdirect_testbed.evidence.frames import TCP_KINDS, Kind, Traffic, frames

_LATE = 16
"""Packets that can come between a marker and the reading of the counters."""


@dataclass(frozen=True)
class Counters:
    """Counters at one moment.

    :param rdma: packets sent and received by RDMA link, as far as its driver counts them
    :param tcp: the ``Tcp`` line of ``/proc/net/snmp``: IPv4 and IPv6
    :param own_stack: the stack is a namespace of its own, so nothing but the scenario uses it
    """

    rdma: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tcp: Mapping[str, int] = field(default_factory=dict)
    own_stack: bool = False

    @classmethod
    def of(cls, rdma: Mapping[str, Sequence[int]], snmp: str, *, own_stack: bool) -> Counters:
        """What the machine's agent counted.

        :param snmp: the text of ``/proc/net/snmp``
        """
        tcp = [line.split()[1:] for line in snmp.splitlines() if line.startswith("Tcp:")]
        return cls(
            {link: (sent, received) for link, (sent, received) in rdma.items()},
            {name: int(value) for name, value in zip(*tcp, strict=True)} if len(tcp) == 2 else {},
            own_stack,
        )

    def since(self, before: Counters) -> Growth:
        """Their growth. A link that was made again in between does not count."""
        sent = received = 0
        known = bool(self.rdma)
        for device, (s, r) in self.rdma.items():
            s0, r0 = before.rdma.get(device, (0, 0))
            if device not in before.rdma or s < s0 or r < r0:
                known = False
            sent, received = sent + s - s0, received + r - r0
        tcp = None
        if self.own_stack and "OutSegs" in self.tcp and "OutSegs" in before.tcp:
            tcp = self.tcp["OutSegs"] - before.tcp["OutSegs"]
        return Growth((sent, received) if known else None, tcp)


@dataclass(frozen=True)
class Growth:
    """The growth of counters between two moments; None where it is unknown.

    :param rdma: packets sent and received by all RDMA links of the client
    :param tcp_sent: TCP segments sent by the client
    """

    rdma: tuple[int, int] | None
    tcp_sent: int | None

    def objection(self, transport: Transport, captured: Traffic) -> str | None:
        """Why the counters contradict a capture that shows ``transport``; None if they agree."""
        roce = frames(captured, Kind.ROCE_SEND, Kind.ROCE_OTHER, Kind.ROCE_CM)
        tcp = frames(captured, *TCP_KINDS, Kind.TCP_OTHER, Kind.IWARP)
        if transport is Transport.SMBDIRECT:
            if self.rdma and not all(self.rdma):
                return (
                    f"{roce} RoCEv2 packets were captured, but the port counters of the RDMA links "
                    f"grew by {self.rdma[0]} sent and {self.rdma[1]} received"
                )
            if self.tcp_sent is not None and self.tcp_sent > tcp + _LATE:
                return f"the client sent {self.tcp_sent} TCP segments, {tcp} of them were captured"
        else:
            if self.rdma and sum(self.rdma) > roce + _LATE:
                return (
                    f"the RDMA links sent and received {sum(self.rdma)} packets, "
                    f"{roce} of them were captured"
                )
            if self.tcp_sent == 0:
                return f"{tcp} TCP segments were captured, but the client's counter did not move"
        return None
