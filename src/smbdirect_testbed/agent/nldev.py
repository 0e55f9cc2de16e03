"""RDMA links by netlink: what ``rdma link add`` and ``del`` do.

Requests and attributes are those of include/uapi/rdma/rdma_netlink.h.
"""

from __future__ import annotations

from smbdirect_testbed.agent import netlink
from smbdirect_testbed.agent.netlink import attribute

_NETLINK_RDMA = 20
_NLDEV = 5
_GET, _NEWLINK, _DELLINK = (_NLDEV << 10 | command for command in (1, 3, 4))
_DEV_INDEX, _DEV_NAME, _NDEV_NAME, _LINK_TYPE = 1, 2, 51, 65


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
