"""Interfaces, addresses and neighbours by netlink: what ``ip`` does, which takes longer to start.

A library would be right, but importing it takes longer than making all links: see
docs/decisions/0030-start-without-pyroute2.md.
Requests and attributes are those of rtnetlink(7), linux/if_link.h, linux/veth.h and
linux/neighbour.h.
"""

from __future__ import annotations

import _socket as socket
import struct

from smbdirect_testbed.agent import netlink
from smbdirect_testbed.agent.netlink import ACK, CREATE, EXCLUSIVE, REPLACE, attribute

_NETLINK_ROUTE = 0
_NEWLINK, _DELLINK, _NEWADDR, _NEWNEIGH = 16, 17, 20, 28
_LINK, _ADDRESS, _NEIGHBOUR = "=BxHiII", "=BBBBI", "=BxxxiHBB"
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_PID = 1, 3, 4, 18, 19
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD = 2
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT = 0x80
_IFF_UP = 1


def veth_end(name: str, mac: str, mtu: int, pid: int, index: int) -> bytes:
    """An end of a pair that is to be made.

    :param pid: a process in the namespace that it belongs in; 0 for the caller's
    :param index: what it gets there, except in the caller's, where others may have it
    """
    attributes = attribute(_IFLA_ADDRESS, _mac(mac)) + _named(name, mtu, pid)
    return _link(attributes, index if pid else 0)


def make_veth(end: bytes, peer: bytes) -> None:
    """Make a pair of interfaces, each in its namespace.

    :raises OSError: the kernel refused
    """
    data = attribute(_INFO_DATA, attribute(_VETH_PEER, peer))
    info = attribute(_INFO_KIND, b"veth") + data
    body = end + attribute(_IFLA_LINKINFO, info)
    netlink.ask(_NETLINK_ROUTE, _NEWLINK, ACK | CREATE | EXCLUSIVE, body)


def move(interface: str, name: str, mtu: int, pid: int) -> None:
    """Give an interface that is down another name and MTU, in another namespace.

    :raises OSError: the kernel refused
    """
    body = _link(_named(name, mtu, pid), socket.if_nametoindex(interface))
    netlink.ask(_NETLINK_ROUTE, _NEWLINK, ACK, body)


def switch(interface: str, *, on: bool) -> None:
    """Switch an interface on or off.

    :raises OSError: the kernel refused
    """
    body = _link(b"", socket.if_nametoindex(interface), _IFF_UP if on else 0, _IFF_UP)
    netlink.ask(_NETLINK_ROUTE, _NEWLINK, ACK, body)


def set_mac(interface: str, mac: str) -> None:
    """Give an interface another address.

    :raises OSError: the kernel refused
    """
    body = _link(attribute(_IFLA_ADDRESS, _mac(mac)), socket.if_nametoindex(interface))
    netlink.ask(_NETLINK_ROUTE, _NEWLINK, ACK, body)


def remove(interface: str) -> None:
    """Remove an interface, and of a pair the other one, too.

    :raises OSError: the kernel refused
    """
    netlink.ask(_NETLINK_ROUTE, _DELLINK, ACK, _link(b"", socket.if_nametoindex(interface)))


def add_address(interface: str, address: str) -> None:
    """Give an interface an address, without checking for duplicates.

    :param address: with the length of its prefix
    :raises OSError: the kernel refused
    """
    host, _, length = address.partition("/")
    family, packed = _packed(host)
    flags = _IFA_F_NODAD if family == socket.AF_INET6 else 0
    index = socket.if_nametoindex(interface)
    body = struct.pack(_ADDRESS, family, int(length), flags, 0, index)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    netlink.ask(_NETLINK_ROUTE, _NEWADDR, ACK | CREATE | EXCLUSIVE, body)


def add_neighbour(interface: str, address: str, mac: str) -> None:
    """Add a permanent neighbour entry.

    :raises OSError: the kernel refused
    """
    family, packed = _packed(address)
    index = socket.if_nametoindex(interface)
    body = struct.pack(_NEIGHBOUR, family, index, _NUD_PERMANENT, 0, 0)
    body += attribute(_NDA_DST, packed) + attribute(_NDA_LLADDR, _mac(mac))
    netlink.ask(_NETLINK_ROUTE, _NEWNEIGH, ACK | CREATE | REPLACE, body)


def _link(attributes: bytes, index: int, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack(_LINK, socket.AF_UNSPEC, 0, index, flags, change) + attributes


def _named(name: str, mtu: int, pid: int) -> bytes:
    attributes = attribute(_IFLA_IFNAME, netlink.text(name))
    attributes += attribute(_IFLA_MTU, struct.pack("=I", mtu))
    return attributes + (attribute(_IFLA_NET_NS_PID, struct.pack("=I", pid)) if pid else b"")


def _packed(address: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
