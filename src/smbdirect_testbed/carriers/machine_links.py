"""Wires between machines: Ethernet over Unix sockets, one frame a message.

A wire is a pair of connected sockets that have no name. Both machines get theirs when they are
started, in any order; what one sends is kept until the other takes it. When one of them ends, what
the other sends is lost, and nothing is left to clean up.
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
class WireEnd:
    """A machine's end of a wire.

    :param mac: the address of the machine's interface
    :param mtu: bytes
    :param descriptor: the socket, open as long as the machines are being started
    :param far: the other end's. Who keeps it, too, does not notice that the other machine has
        ended: what it sends is not refused then.
    """

    mac: str
    mtu: int
    descriptor: int
    far: int


@contextmanager
def dead_ends(ends: Iterable[WireEnd]) -> Iterator[tuple[WireEnd, ...]]:
    """The same ends, of wires that lead nowhere: for the template of a machine with such ends."""
    with ExitStack() as stack:
        dead = []
        for end in ends:
            here, there = _pair()
            there.close()
            stack.enter_context(here)
            dead.append(replace(end, descriptor=here.fileno(), far=-1))
        yield tuple(dead)


@contextmanager
def wires_between_machines(spec: EnvironmentSpec) -> Iterator[Mapping[str, tuple[WireEnd, ...]]]:
    """The ends of all wires that a spec's links need, by the machine's name."""
    ends: dict[str, list[WireEnd]] = {name: [] for name in spec.machines}
    with ExitStack() as stack:
        for number, link in enumerate(spec.links):
            if not spec.crosses(link):
                continue
            pair = [stack.enter_context(wire) for wire in _pair()]
            near, far = (wire.fileno() for wire in pair)
            for host, end in planned_link(number, link).items():
                ends[spec.host(host).machine].append(WireEnd(end.mac, link.mtu, near, far))
                near, far = far, near
        yield {name: tuple(of_machine) for name, of_machine in ends.items()}


def _pair() -> tuple[socket.socket, socket.socket]:
    # Datagrams have no end, which the other machine would read for ever. The queue of a pair is as
    # long as its buffer; only of other sockets eleven datagrams are kept.
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    return pair
