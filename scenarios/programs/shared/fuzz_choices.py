"""What the operations of a fuzzer are done with, at random: sockets, sizes, flags, addresses."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import socket
from collections import Counter

IPPROTO_SMBDIRECT = 257
SOL_SMBDIRECT = 289
PORTS = (5470, 5471, 5472, 5473)
LARGE = 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)
LEVELS = (socket.SOL_SOCKET, 0, 6, 41, IPPROTO_SMBDIRECT, SOL_SMBDIRECT)
_NOISE = 70_000
_FLAGS = (
    socket.MSG_DONTWAIT,
    socket.MSG_OOB,
    socket.MSG_PEEK,
    socket.MSG_TRUNC,
    socket.MSG_WAITALL,
    socket.MSG_ERRQUEUE,
    socket.MSG_MORE,
    socket.MSG_CTRUNC,
    socket.MSG_DONTROUTE,
    0x4000000,  # MSG_ZEROCOPY
    0x20000000,  # MSG_FASTOPEN
)


class Choices:
    """Of one process of a round.

    :param sockets: those that all processes of the round begin with
    """

    def __init__(
        self, seed: str, addresses: list[str], peers: list[str], sockets: list[socket.socket]
    ) -> None:
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.addresses = addresses
        self.peers = peers
        self.sockets = sockets
        # Made once: it takes an emulated machine longer than the call that sends it.
        self.noise_pool = self.random.randbytes(_NOISE)
        self.peered: set[int] = set()
        self.trap = mmap.mmap(-1, 3 * mmap.PAGESIZE)
        self.trap_address = ctypes.addressof(ctypes.c_char.from_buffer(self.trap))
        # Memory that ends in the middle: what is copied to or from it faults half way.
        LIBC.mprotect(ctypes.c_void_p(self.trap_address + mmap.PAGESIZE), mmap.PAGESIZE, 0)
        # What the peer may write to is no memory of Python's.
        self.memory = memoryview(mmap.mmap(-1, LARGE))
        self.unix = socket.socketpair()
        for end in self.unix:
            end.setblocking(False)

    def new(self) -> None:
        family = self.random.choice((socket.AF_INET, socket.AF_INET6))
        kind = int(socket.SOCK_STREAM)
        if self.random.random() < 0.05:
            kind = self.random.randrange(12)
        sock = socket.socket(family, kind, IPPROTO_SMBDIRECT)
        if self.random.random() < 0.7:
            sock.setblocking(False)
        self.sockets.append(sock)

    def any_socket(self) -> socket.socket:
        if not self.sockets:
            self.new()
        return self.random.choice(self.sockets)

    def talking(self) -> socket.socket:
        """Rather one that has a peer, or had: without that, most operations end at once."""
        talking = [s for s in self.sockets if s.fileno() in self.peered]
        return self.random.choice(talking) if talking else self.any_socket()

    def size(self) -> int:
        return self.random.choice(
            (0, 1, 3, 4, 5, 100, 1340, 1364, 4096, 12288, 65536, self.random.randrange(LARGE))
        )

    def flags(self) -> int:
        flags = 0
        while self.random.random() < 0.3:
            flags |= self.random.choice(_FLAGS)
        if self.random.random() < 0.02:
            flags = self.random.getrandbits(31)
        # A thousandth of the time it may wait; else there would be no other operations.
        return flags | (socket.MSG_DONTWAIT if self.random.random() < 0.8 else 0)

    def noise(self, size: int) -> bytes:
        size = min(size, _NOISE)
        at = self.random.randrange(_NOISE - size + 1)
        return self.noise_pool[at : at + size]

    def address(self, sock: socket.socket, pool: list[str]) -> tuple[str, int]:
        ipv6 = sock.family == socket.AF_INET6
        suited = [a for a in pool if (":" in a) == ipv6] or pool
        other = ["::1", "::"] if ipv6 else ["127.0.0.1", "0.0.0.0", "192.0.2.1", "224.0.0.1"]
        choices = suited * 4 + other
        if ipv6:
            choices += [f"::ffff:{a}" for a in pool if ":" not in a]
        return self.random.choice(choices), self.random.choice((*PORTS[:1] * 6, *PORTS, 0, 1))


def signed(number: int) -> int:
    return number - (1 << 32) if number >> 31 else number


def raise_if(failed: bool) -> None:
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
