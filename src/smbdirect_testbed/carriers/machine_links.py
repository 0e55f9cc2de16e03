"""Machine links: Ethernet between machines over Unix sockets, one frame a message.

A machine link is a pair of connected sockets without names. Each machine gets its end when it is
started. The order does not matter: frames wait until the other machine reads them. When a machine
has ended, frames sent to it are lost. Nothing is left to clean up.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from smbdirect_testbed.config.spec import EnvironmentSpec
from smbdirect_testbed.machine.topology import planned_link

_BUFFER = 4 << 20
"""Bytes in each direction."""


@dataclass(frozen=True)
class MachineLinkEnd:
    """A machine's end of a machine link.

    :param mac: the address of the machine's interface
    :param mtu: bytes
    :param descriptor: the socket, open as long as the machines are being started
    :param far: the socket of the other end. A machine that holds both ends does not notice the end
        of the other machine: its own frames are not refused.
    """

    mac: str
    mtu: int
    descriptor: int
    far: int


@contextmanager
def dead_ends(ends: Iterable[MachineLinkEnd]) -> Iterator[tuple[MachineLinkEnd, ...]]:
    """Ends like these whose links lead nowhere: for the template of a machine with such ends."""
    with ExitStack() as stack:
        dead = []
        for end in ends:
            here, there = _pair()
            there.close()
            stack.enter_context(here)
            dead.append(replace(end, descriptor=here.fileno(), far=-1))
        yield tuple(dead)


@contextmanager
def links_between_machines(
    spec: EnvironmentSpec,
) -> Iterator[Mapping[str, tuple[MachineLinkEnd, ...]]]:
    """The ends of all machine links that a spec needs, by the machine's name."""
    ends: dict[str, list[MachineLinkEnd]] = {name: [] for name in spec.machines}
    with ExitStack() as stack:
        for number, link in enumerate(spec.links):
            if not spec.crosses(link):
                continue
            pair = [stack.enter_context(link) for link in _pair()]
            near, far = (link.fileno() for link in pair)
            for host, end in planned_link(number, link).items():
                ends[spec.host(host).machine].append(MachineLinkEnd(end.mac, link.mtu, near, far))
                near, far = far, near
        yield {name: tuple(of_machine) for name, of_machine in ends.items()}


def _pair() -> tuple[socket.socket, socket.socket]:
    # Datagram sockets have no end of file, which the other machine would read for ever. The queue
    # of a pair is limited by its buffer; that of a named socket is limited to eleven datagrams.
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    return pair
