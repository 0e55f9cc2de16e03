"""RDMA links by netlink: what ``rdma link add`` and ``del`` and ``rdma resource`` do.

Requests and attributes are those of include/uapi/rdma/rdma_netlink.h.
"""

from __future__ import annotations

import errno
import sys

from smbdirect_testbed.agent import netlink
from smbdirect_testbed.agent.netlink import attribute

_NETLINK_RDMA = 20
_NLDEV = 5
_GET, _NEWLINK, _DELLINK, _RES_GET = (_NLDEV << 10 | command for command in (1, 3, 4, 9))
_DEV_INDEX, _DEV_NAME, _NDEV_NAME, _LINK_TYPE = 1, 2, 51, 65
_SUMMARY, _ENTRY, _ENTRY_NAME, _ENTRY_NUMBER = 15, 16, 17, 18


def add_link(name: str, kind: str, interface: str) -> None:
    """Put an RDMA device on an interface of the caller's network namespace.

    :param kind: ``rxe`` or ``siw``
    :raises OSError: the kernel refused
    """
    texts = ((_DEV_NAME, name), (_LINK_TYPE, kind), (_NDEV_NAME, interface))
    body = b"".join(attribute(number, netlink.text(value)) for number, value in texts)
    netlink.ask(_NETLINK_RDMA, _NEWLINK, netlink.ACK, body)


def remove_link(name: str) -> None:
    """Remove an RDMA device that the caller's network namespace sees.

    :raises OSError: the kernel refused, or there is none of that name
    """
    for body in netlink.ask(_NETLINK_RDMA, _GET, netlink.DUMP, b""):
        found = netlink.parsed(body)
        if found[_DEV_NAME] == netlink.text(name):
            index = attribute(_DEV_INDEX, found[_DEV_INDEX])
            netlink.ask(_NETLINK_RDMA, _DELLINK, netlink.ACK, index)
            return
    raise OSError(f"there is no RDMA link {name}")


def resources() -> list[tuple[str, str, int]]:
    """How many there are of each kind of RDMA resource: link, kind (``qp``, ``cm_id``), number."""
    found = []
    try:
        answers = netlink.ask(_NETLINK_RDMA, _RES_GET, netlink.DUMP, b"")
    except OSError as e:
        if e.errno != errno.EPROTONOSUPPORT:
            raise
        return []  # a kernel without RDMA
    for body in answers:
        of_link = netlink.parsed(body)
        link = of_link[_DEV_NAME].rstrip(b"\0").decode()
        for number, entry in netlink.listed(of_link.get(_SUMMARY, b"")):
            if number == _ENTRY:
                told = netlink.parsed(entry)
                kind = told[_ENTRY_NAME].rstrip(b"\0").decode()
                found.append((link, kind, int.from_bytes(told[_ENTRY_NUMBER], sys.byteorder)))
    return found
