"""Operations on sockets of protocol 257 that an unprivileged user can think of."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from types import FrameType

from fuzz_choices import (
    IPPROTO_SMBDIRECT,
    LARGE,
    LEVELS,
    LIBC,
    SOL_SMBDIRECT,
    Choices,
    raise_if,
    signed,
)

ROUND = 4.0
"""Seconds of operations in a round."""
_MOST_SOCKETS = 8
"""Of one process: a connection takes megabytes of kernel memory."""
_TICK = 0.2
"""Seconds after which a call that blocks is interrupted."""


class _Tick(Exception):
    """A call took too long."""


class Fuzzer(Choices):
    """One process of a round."""

    calling = False

    def run(self, until: float) -> None:
        """Operate until a time of the monotonic clock."""
        signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
        operations: list[tuple[int, Callable[[], object]]] = [
            (6, self.new),
            (5, self.bind),
            (4, self.listen),
            (10, self.connect),
            (3, self.make_friends),
            (8, self.accept),
            (14, self.send_frame),
            (6, self.send_noise),
            (6, self.sendmsg),
            (14, self.receive),
            (4, self.recvmsg),
            (5, self.at_bad_address),
            (6, self.set_option),
            (4, self.get_option),
            (4, self.ioctl),
            (4, self.poll),
            (1, self.shut_down),
            (3, self.names),
            (5, self.set_parameters),
            (8, self.rdma),
            (5, self.rdma_result),
            (2, self.raw_bind_or_connect),
            (2, self.pass_on),
            (2, self.splice),
            (1, self.odd_ends),
            (4, self.toggle_blocking),
            (6, self.close),
        ]
        weights = [weight for weight, _ in operations]
        while time.monotonic() < until:
            ((_, operation),) = self.random.choices(operations, weights)
            result = "ok"
            if not self.peered:
                operation = self.make_friends
            try:
                # The inner one, so that no tick comes while another exception is looked at.
                try:
                    self.calling = True
                    operation()
                finally:
                    self.calling = False
            except _Tick:
                result = "interrupted"
            except OSError as e:
                result = errno.errorcode.get(e.errno or 0, str(e))
            except (ValueError, OverflowError):
                result = "refused by Python"
            self.counts[f"{operation.__name__} {result}"] += 1
            while len(self.sockets) > _MOST_SOCKETS:
                self.sockets.pop(self.random.randrange(len(self.sockets))).close()
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _tick(self, number: int, frame: FrameType | None) -> None:
        if self.calling:
            self.calling = False
            raise _Tick

    def make_friends(self) -> None:
        """A connection as it should be, with both of its ends here; it gets the time it takes."""
        self.calling = False
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SMBDIRECT)
        own = next(a for a in self.addresses if ":" not in a)
        with listener:
            listener.setblocking(False)
            listener.bind((own, 0))
            listener.listen(1)
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SMBDIRECT)
            sock.setblocking(False)
            self.sockets.append(sock)
            self.peered.add(sock.fileno())
            with contextlib.suppress(BlockingIOError):
                sock.connect(listener.getsockname())
            select.select([listener], [], [], ROUND)
            accepted, _ = listener.accept()
            self.sockets.append(accepted)
            self.peered.add(accepted.fileno())

    def bind(self) -> None:
        sock = self.any_socket()
        if self.random.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(self.address(sock, self.addresses))

    def listen(self) -> None:
        self.any_socket().listen(self.random.choice((0, 1, 1, 2, 5, 128, 1 << 30)))

    def connect(self) -> None:
        sock = self.any_socket()
        self.peered.add(sock.fileno())
        sock.connect(self.address(sock, self.peers))

    def accept(self) -> None:
        sock = self.any_socket()
        accepted, _ = sock.accept()
        accepted.setblocking(self.random.random() < 0.3)
        self.sockets.append(accepted)
        self.peered.add(accepted.fileno())

    def send_frame(self) -> None:
        payload = self.noise(self.size())
        data = struct.pack(">I", len(payload)) + payload
        sock = self.talking()
        if self.random.random() < 0.3:
            data = data[: self.random.randrange(len(data))]
        self.counts["bytes_sent"] += sock.send(data, self.flags())

    def send_noise(self) -> None:
        length = self.random.choice((0, 0, 1, 0x00FFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
        data = struct.pack(">I", length) + self.random.randbytes(self.random.randrange(40))
        if self.random.random() < 0.5:
            data = self.noise(self.random.randrange(1, 9000))
        self.talking().send(data, self.flags())

    def sendmsg(self) -> None:
        pieces = [
            self.noise(self.random.randrange(300))
            for _ in range(self.random.choice((0, 1, 2, 100, 1024)))
        ]
        controls = []
        while self.random.random() < 0.5:
            level = self.random.choice(LEVELS)
            kind = self.random.choice((1, 2, 0x40045320, 0x20, self.random.getrandbits(31)))
            controls.append(
                (level, kind, self.random.randbytes(self.random.choice((0, 4, 16, 300))))
            )
        sock = self.talking()
        address = self.address(sock, self.peers) if self.random.random() < 0.1 else None
        sock.sendmsg(pieces, controls, self.flags(), *([address] if address else []))

    def receive(self) -> None:
        got = self.talking().recv(self.size(), self.flags())
        self.counts["bytes_received"] += len(got)

    def recvmsg(self) -> None:
        buffers = [bytearray(self.size()) for _ in range(self.random.randrange(4))]
        room = self.random.choice((0, 1, 16, 64, 4096))
        self.talking().recvmsg_into(buffers, room, self.flags())

    def at_bad_address(self) -> None:
        number = self.talking().fileno()
        size = self.random.choice((1, 8, 5000, 100_000))
        address = self.random.choice(
            (
                0,
                8,
                self.trap_address + mmap.PAGESIZE - self.random.randrange(1, 20),
                self.trap_address + mmap.PAGESIZE,
                0xFFFF800000000000,
                (1 << 64) - 4,
            )
        )
        call = self.random.choice((LIBC.recv, LIBC.send))
        if call is LIBC.send and address == self.trap_address:
            size = 4
        result = call(
            number, ctypes.c_void_p(address), ctypes.c_size_t(size), socket.MSG_DONTWAIT | 0x4000
        )
        raise_if(result < 0)

    def set_option(self) -> None:
        level = self.random.choice((*LEVELS, self.random.getrandbits(16)))
        name = self.random.choice((self.random.randrange(90), self.random.getrandbits(31)))
        value = self.random.choice(
            (
                struct.pack("i", self.random.choice((0, 1, -1, 2, 4096, 0x7FFFFFFF))),
                struct.pack("ll", 0, self.random.randrange(200_000)),
                struct.pack("ii", self.random.randrange(2), self.random.randrange(3)),
                self.random.randbytes(self.random.choice((0, 1, 3, 16, 44, 256, 5000))),
            )
        )
        self.any_socket().setsockopt(level, name, value)

    def get_option(self) -> None:
        level = self.random.choice((*LEVELS, self.random.getrandbits(16)))
        name = self.random.choice((self.random.randrange(90), self.random.getrandbits(31)))
        self.any_socket().getsockopt(level, name, self.random.choice((0, 1, 4, 8, 44, 256, 1024)))

    def ioctl(self) -> None:
        request = self.random.choice(
            (0x541B, 0x5411, 0x894B, 0x5421, 0x8905, 0x8912, self.random.getrandbits(32))
        )
        room = bytearray(self.random.randbytes(4) + bytes(4092))
        fcntl.ioctl(self.any_socket().fileno(), request, room)

    def poll(self) -> None:
        with select.epoll() as poll:
            for sock in self.sockets:
                with contextlib.suppress(FileExistsError):
                    poll.register(sock, self.random.getrandbits(14) | 1)
            poll.poll(self.random.choice((0, 0, 0.02)))

    def shut_down(self) -> None:
        self.talking().shutdown(self.random.choice((0, 1, 2, 2, 3, -1)))

    def names(self) -> None:
        sock = self.any_socket()
        number = sock.fileno()
        room = ctypes.create_string_buffer(128)
        length = ctypes.c_uint(self.random.choice((0, 1, 8, 16, 28, 128)))
        call = self.random.choice((LIBC.getsockname, LIBC.getpeername))
        raise_if(call(number, room, ctypes.byref(length)) < 0)

    def set_parameters(self) -> None:
        numbers = (0, 0, 0, 0, 1, 16, 128, 255, 1000, 4096, 131072, 8 << 20, 0xFFFFFFFF)
        wanted = [0] * 14
        while self.random.random() < 0.7:
            wanted[self.random.randrange(14)] = self.random.choice(numbers)
        size = self.random.choice((56, 56, 56, 44, 4, 60))
        value = (struct.pack("=14I", *wanted) + bytes(8))[:size]
        self.any_socket().setsockopt(SOL_SMBDIRECT, 1, value)

    def rdma(self) -> None:
        """Register, deregister, read, write; tokens are guessed."""
        number = self.random.choice((0x20, 0x21, 0x21, 0x22, 0x23, 0x24))
        size = 4 if number == 0x20 else 16
        kind = 1 << 30 | (0 if number == 0x20 else 1 << 31) | size << 16 | ord("S") << 8 | number
        token = self.random.randrange(1, 80) << 8 | self.random.getrandbits(8)
        length = self.random.choice((0, 1, 4096, 5000, 100_000, 0xFFFFFFFF))
        count = self.random.choice((0, 1, 1, 2, 16, 300))
        control = struct.pack("=Q", self.random.getrandbits(3))
        if number == 0x20:
            control = struct.pack("=I", token)
        elif number == 0x21:
            control += struct.pack("=II", self.random.choice((0, 1, 1, 2)), 0)
        elif number == 0x22:
            control += struct.pack("=II", token, 0)
        else:
            control += struct.pack("=II", length, count)
            for _ in range(count):
                control += struct.pack("<QII", self.random.getrandbits(40), token, length)
        if self.random.random() < 0.05:
            control = control[: self.random.randrange(len(control))]
        at, end = sorted(self.random.randrange(LARGE) for _ in range(2))
        part = self.memory[at : min(end, at + min(length, 1 << 18))]
        self.talking().sendmsg(
            [part], [(SOL_SMBDIRECT, signed(kind), control)], socket.MSG_OOB | self.flags()
        )

    def rdma_result(self) -> None:
        room = self.random.choice((0, 16, 56, 64, 4096))
        flags = socket.MSG_OOB | socket.MSG_DONTWAIT | self.flags()
        self.talking().recvmsg_into([bytearray(self.size())], room, flags)

    def raw_bind_or_connect(self) -> None:
        family = self.random.choice((0, 0, 1, 2, 10, 16, 0xFFFF))
        address = struct.pack("HH", family, 0x5E15) + self.random.randbytes(124)
        length = self.random.choice((0, 1, 2, 4, 15, 16, 24, 28, 128))
        call = self.random.choice((LIBC.bind, LIBC.connect))
        sock = self.any_socket()
        sock.setblocking(False)
        raise_if(call(sock.fileno(), address, length) < 0)

    def pass_on(self) -> None:
        """Put a socket into a message, or take one from there."""
        mine, theirs = self.unix
        if self.random.random() < 0.5:
            socket.send_fds(mine, [b"x"], [self.any_socket().fileno()])
            return
        _, numbers, _, _ = socket.recv_fds(theirs, 1, 1)
        self.sockets += [socket.socket(fileno=n) for n in numbers]

    def splice(self) -> None:
        sock = self.talking()
        sock.setblocking(False)
        incoming, outgoing = os.pipe()
        try:
            if self.random.random() < 0.5:
                os.splice(sock.fileno(), outgoing, 20_000, flags=2)
            else:
                os.write(outgoing, struct.pack(">I", 1000) + bytes(1000))
                os.splice(incoming, sock.fileno(), 1004, flags=2)
        finally:
            os.close(incoming)
            os.close(outgoing)

    def odd_ends(self) -> None:
        """Rare things: end by a signal, map the socket, have it by another number."""
        what = self.random.randrange(4)
        if what == 0 and self.random.random() < 0.1:
            self.counts["killed_itself"] += 1
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == 1:
            mmap.mmap(self.any_socket().fileno(), 4096)
        elif what == 2:
            self.sockets.append(self.any_socket().dup())
        else:
            os.open(f"/proc/self/fd/{self.any_socket().fileno()}", os.O_RDWR)

    def toggle_blocking(self) -> None:
        self.any_socket().setblocking(self.random.random() < 0.3)

    def close(self) -> None:
        if self.sockets:
            self.sockets.pop(self.random.randrange(len(self.sockets))).close()
