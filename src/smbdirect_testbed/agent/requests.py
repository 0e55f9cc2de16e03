"""The shapes of what requests carry, for type checkers: nothing here exists in a machine."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypedDict

    class LinkEnd(TypedDict):
        """A host's end of a link.

        ``ipv4`` and ``ipv6`` are addresses with a prefix length.
        """

        host: str
        device: str
        mac: str
        ipv4: str
        ipv6: str

    class LinkShape(TypedDict):
        """How a link treats packets.

        ``mtu`` is in bytes; ``neighbours``: set permanent neighbour entries; ``delay`` is in
        milliseconds and ``loss`` in per cent, in each direction.
        """

        mtu: int
        neighbours: bool
        delay: float
        loss: float

    class Link(LinkShape):
        """A link between two hosts of one machine: ``ends`` are two."""

        ends: list[LinkEnd]

    class RdmaLink(TypedDict):
        """A soft-RDMA device on an interface.

        ``gids`` is the number of GID table entries that the interface's addresses make; ``sysctls``
        are values by names below ``/proc/sys``, set in the host's network namespace.
        """

        host: str
        device: str
        kind: str
        name: str
        gids: int
        sysctls: dict[str, str]

    class Counted(TypedDict):
        """What a host counted: packets by RDMA link, and the text of ``/proc/net/snmp``."""

        rdma: dict[str, list[int]]
        snmp: str
