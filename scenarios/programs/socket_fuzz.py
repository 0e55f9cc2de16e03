"""Does everything an unprivileged user can think of to sockets of protocol 257, at random.

Runs in a machine, with its plain Python. A round is some processes that share sockets and operate
on them; each round has a seed of its own, made from the run's, so that one round can be repeated.
A round must be over when all its processes are killed: one that is not is stuck in the kernel.
Prints one line of JSON at the end; the exit status is 1 when a process was stuck or crashed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

IPPROTO_SMBDIRECT = 257
SOL_SMBDIRECT = 289
_PORTS = (5470, 5471, 5472, 5473)
_MOST_SOCKETS = 8
"""Of one process: a connection takes megabytes of kernel memory."""
_WORKERS = 2
_TICK = 0.2
"""Seconds after which a call that blocks is interrupted."""
_ROUND = 4.0
"""Seconds of operations in a round."""
_END = 60.0
"""Seconds after SIGKILL in which a process must be gone."""
_LARGE = 1 << 20
_NOISE = 70_000
_LIBC = ctypes.CDLL(None, use_errno=True)
_LEVELS = (socket.SOL_SOCKET, 0, 6, 41, IPPROTO_SMBDIRECT, SOL_SMBDIRECT)
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


class _Tick(Exception):
    """A call took too long."""


class Fuzzer:
    """One process of a round.

    :param sockets: those that all processes of the round begin with
    """

    def __init__(
        self, seed: str, addresses: list[str], peers: list[str], sockets: list[socket.socket]
    ) -> None:
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self._addresses = addresses
        self._peers = peers
        self._sockets = sockets
        self._calling = False
        # Made once: it takes an emulated machine longer than the call that sends it.
        self._noise_pool = self.random.randbytes(_NOISE)
        self._peered: set[int] = set()
        self._trap = mmap.mmap(-1, 3 * mmap.PAGESIZE)
        self._trap_address = ctypes.addressof(ctypes.c_char.from_buffer(self._trap))
        # Memory that ends in the middle: what is copied to or from it faults half way.
        _LIBC.mprotect(ctypes.c_void_p(self._trap_address + mmap.PAGESIZE), mmap.PAGESIZE, 0)
        # What the peer may write to is no memory of Python's.
        self._memory = memoryview(mmap.mmap(-1, _LARGE))
        self._unix = socket.socketpair()
        for end in self._unix:
            end.setblocking(False)
        self._operations: list[tuple[int, Callable[[], object]]] = [
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

    def run(self, until: float) -> None:
        """Operate until a time of the monotonic clock."""
        signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
        weights = [weight for weight, _ in self._operations]
        while time.monotonic() < until:
            ((_, operation),) = self.random.choices(self._operations, weights)
            result = "ok"
            if not self._peered:
                operation = self.make_friends
            try:
                # The inner one, so that no tick comes while another exception is looked at.
                try:
                    self._calling = True
                    operation()
                finally:
                    self._calling = False
            except _Tick:
                result = "interrupted"
            except OSError as e:
                result = errno.errorcode.get(e.errno or 0, str(e))
            except (ValueError, OverflowError):
                result = "refused by Python"
            self.counts[f"{operation.__name__} {result}"] += 1
            while len(self._sockets) > _MOST_SOCKETS:
                self._sockets.pop(self.random.randrange(len(self._sockets))).close()
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _tick(self, number: int, frame: FrameType | None) -> None:
        if self._calling:
            self._calling = False
            raise _Tick

    # What operations need.

    def _any(self) -> socket.socket:
        if not self._sockets:
            self.new()
        return self.random.choice(self._sockets)

    def _talking(self) -> socket.socket:
        """Rather one that has a peer, or had: without that, most operations end at once."""
        talking = [s for s in self._sockets if s.fileno() in self._peered]
        return self.random.choice(talking) if talking else self._any()

    def _size(self) -> int:
        return self.random.choice(
            (0, 1, 3, 4, 5, 100, 1340, 1364, 4096, 12288, 65536, self.random.randrange(_LARGE))
        )

    def _flags(self) -> int:
        flags = 0
        while self.random.random() < 0.3:
            flags |= self.random.choice(_FLAGS)
        if self.random.random() < 0.02:
            flags = self.random.getrandbits(31)
        # A thousandth of the time it may wait; else there would be no other operations.
        return flags | (socket.MSG_DONTWAIT if self.random.random() < 0.8 else 0)

    def _noise(self, size: int) -> bytes:
        size = min(size, _NOISE)
        at = self.random.randrange(_NOISE - size + 1)
        return self._noise_pool[at : at + size]

    def _address(self, sock: socket.socket, pool: list[str]) -> tuple[str, int]:
        ipv6 = sock.family == socket.AF_INET6
        suited = [a for a in pool if (":" in a) == ipv6] or pool
        other = ["::1", "::"] if ipv6 else ["127.0.0.1", "0.0.0.0", "192.0.2.1", "224.0.0.1"]
        choices = suited * 4 + other
        if ipv6:
            choices += [f"::ffff:{a}" for a in pool if ":" not in a]
        return self.random.choice(choices), self.random.choice((*_PORTS[:1] * 6, *_PORTS, 0, 1))

    # Operations.

    def make_friends(self) -> None:
        """A connection as it should be, with both of its ends here; it gets the time it takes."""
        self._calling = False
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SMBDIRECT)
        own = next(a for a in self._addresses if ":" not in a)
        with listener:
            listener.setblocking(False)
            listener.bind((own, 0))
            listener.listen(1)
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SMBDIRECT)
            sock.setblocking(False)
            self._sockets.append(sock)
            self._peered.add(sock.fileno())
            with contextlib.suppress(BlockingIOError):
                sock.connect(listener.getsockname())
            select.select([listener], [], [], _ROUND)
            accepted, _ = listener.accept()
            self._sockets.append(accepted)
            self._peered.add(accepted.fileno())

    def new(self) -> None:
        family = self.random.choice((socket.AF_INET, socket.AF_INET6))
        kind = int(socket.SOCK_STREAM)
        if self.random.random() < 0.05:
            kind = self.random.randrange(12)
        sock = socket.socket(family, kind, IPPROTO_SMBDIRECT)
        if self.random.random() < 0.7:
            sock.setblocking(False)
        self._sockets.append(sock)

    def bind(self) -> None:
        sock = self._any()
        if self.random.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(self._address(sock, self._addresses))

    def listen(self) -> None:
        self._any().listen(self.random.choice((0, 1, 1, 2, 5, 128, 1 << 30)))

    def connect(self) -> None:
        sock = self._any()
        self._peered.add(sock.fileno())
        sock.connect(self._address(sock, self._peers))

    def accept(self) -> None:
        sock = self._any()
        accepted, _ = sock.accept()
        accepted.setblocking(self.random.random() < 0.3)
        self._sockets.append(accepted)
        self._peered.add(accepted.fileno())

    def send_frame(self) -> None:
        payload = self._noise(self._size())
        data = struct.pack(">I", len(payload)) + payload
        sock = self._talking()
        if self.random.random() < 0.3:
            data = data[: self.random.randrange(len(data))]
        self.counts["bytes_sent"] += sock.send(data, self._flags())

    def send_noise(self) -> None:
        length = self.random.choice((0, 0, 1, 0x00FFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
        data = struct.pack(">I", length) + self.random.randbytes(self.random.randrange(40))
        if self.random.random() < 0.5:
            data = self._noise(self.random.randrange(1, 9000))
        self._talking().send(data, self._flags())

    def sendmsg(self) -> None:
        pieces = [
            self._noise(self.random.randrange(300))
            for _ in range(self.random.choice((0, 1, 2, 100, 1024)))
        ]
        controls = []
        while self.random.random() < 0.5:
            level = self.random.choice(_LEVELS)
            kind = self.random.choice((1, 2, 0x40045320, 0x20, self.random.getrandbits(31)))
            controls.append(
                (level, kind, self.random.randbytes(self.random.choice((0, 4, 16, 300))))
            )
        sock = self._talking()
        address = self._address(sock, self._peers) if self.random.random() < 0.1 else None
        sock.sendmsg(pieces, controls, self._flags(), *([address] if address else []))

    def receive(self) -> None:
        got = self._talking().recv(self._size(), self._flags())
        self.counts["bytes_received"] += len(got)

    def recvmsg(self) -> None:
        buffers = [bytearray(self._size()) for _ in range(self.random.randrange(4))]
        room = self.random.choice((0, 1, 16, 64, 4096))
        self._talking().recvmsg_into(buffers, room, self._flags())

    def at_bad_address(self) -> None:
        number = self._talking().fileno()
        size = self.random.choice((1, 8, 5000, 100_000))
        address = self.random.choice(
            (
                0,
                8,
                self._trap_address + mmap.PAGESIZE - self.random.randrange(1, 20),
                self._trap_address + mmap.PAGESIZE,
                0xFFFF800000000000,
                (1 << 64) - 4,
            )
        )
        call = self.random.choice((_LIBC.recv, _LIBC.send))
        if call is _LIBC.send and address == self._trap_address:
            size = 4
        result = call(
            number, ctypes.c_void_p(address), ctypes.c_size_t(size), socket.MSG_DONTWAIT | 0x4000
        )
        _raise_if(result < 0)

    def set_option(self) -> None:
        level = self.random.choice((*_LEVELS, self.random.getrandbits(16)))
        name = self.random.choice((self.random.randrange(90), self.random.getrandbits(31)))
        value = self.random.choice(
            (
                struct.pack("i", self.random.choice((0, 1, -1, 2, 4096, 0x7FFFFFFF))),
                struct.pack("ll", 0, self.random.randrange(200_000)),
                struct.pack("ii", self.random.randrange(2), self.random.randrange(3)),
                self.random.randbytes(self.random.choice((0, 1, 3, 16, 44, 256, 5000))),
            )
        )
        self._any().setsockopt(level, name, value)

    def get_option(self) -> None:
        level = self.random.choice((*_LEVELS, self.random.getrandbits(16)))
        name = self.random.choice((self.random.randrange(90), self.random.getrandbits(31)))
        self._any().getsockopt(level, name, self.random.choice((0, 1, 4, 8, 44, 256, 1024)))

    def ioctl(self) -> None:
        request = self.random.choice(
            (0x541B, 0x5411, 0x894B, 0x5421, 0x8905, 0x8912, self.random.getrandbits(32))
        )
        room = bytearray(self.random.randbytes(4) + bytes(4092))
        fcntl.ioctl(self._any().fileno(), request, room)

    def poll(self) -> None:
        with select.epoll() as poll:
            for sock in self._sockets:
                with contextlib.suppress(FileExistsError):
                    poll.register(sock, self.random.getrandbits(14) | 1)
            poll.poll(self.random.choice((0, 0, 0.02)))

    def shut_down(self) -> None:
        self._talking().shutdown(self.random.choice((0, 1, 2, 2, 3, -1)))

    def names(self) -> None:
        sock = self._any()
        number = sock.fileno()
        room = ctypes.create_string_buffer(128)
        length = ctypes.c_uint(self.random.choice((0, 1, 8, 16, 28, 128)))
        call = self.random.choice((_LIBC.getsockname, _LIBC.getpeername))
        _raise_if(call(number, room, ctypes.byref(length)) < 0)

    def set_parameters(self) -> None:
        numbers = (0, 0, 0, 0, 1, 16, 128, 255, 1000, 4096, 131072, 8 << 20, 0xFFFFFFFF)
        wanted = [0] * 14
        while self.random.random() < 0.7:
            wanted[self.random.randrange(14)] = self.random.choice(numbers)
        size = self.random.choice((56, 56, 56, 44, 4, 60))
        value = (struct.pack("=14I", *wanted) + bytes(8))[:size]
        self._any().setsockopt(SOL_SMBDIRECT, 1, value)

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
        at, end = sorted(self.random.randrange(_LARGE) for _ in range(2))
        part = self._memory[at : min(end, at + min(length, 1 << 18))]
        self._talking().sendmsg(
            [part], [(SOL_SMBDIRECT, _signed(kind), control)], socket.MSG_OOB | self._flags()
        )

    def rdma_result(self) -> None:
        room = self.random.choice((0, 16, 56, 64, 4096))
        flags = socket.MSG_OOB | socket.MSG_DONTWAIT | self._flags()
        self._talking().recvmsg_into([bytearray(self._size())], room, flags)

    def raw_bind_or_connect(self) -> None:
        family = self.random.choice((0, 0, 1, 2, 10, 16, 0xFFFF))
        address = struct.pack("HH", family, 0x5E15) + self.random.randbytes(124)
        length = self.random.choice((0, 1, 2, 4, 15, 16, 24, 28, 128))
        call = self.random.choice((_LIBC.bind, _LIBC.connect))
        sock = self._any()
        sock.setblocking(False)
        _raise_if(call(sock.fileno(), address, length) < 0)

    def pass_on(self) -> None:
        """Put a socket into a message, or take one from there."""
        mine, theirs = self._unix
        if self.random.random() < 0.5:
            socket.send_fds(mine, [b"x"], [self._any().fileno()])
            return
        _, numbers, _, _ = socket.recv_fds(theirs, 1, 1)
        self._sockets += [socket.socket(fileno=n) for n in numbers]

    def splice(self) -> None:
        sock = self._talking()
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
            mmap.mmap(self._any().fileno(), 4096)
        elif what == 2:
            self._sockets.append(self._any().dup())
        else:
            os.open(f"/proc/self/fd/{self._any().fileno()}", os.O_RDWR)

    def toggle_blocking(self) -> None:
        self._any().setblocking(self.random.random() < 0.3)

    def close(self) -> None:
        if self._sockets:
            self._sockets.pop(self.random.randrange(len(self._sockets))).close()


def _signed(number: int) -> int:
    return number - (1 << 32) if number >> 31 else number


def _raise_if(failed: bool) -> None:
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# Rounds.


def play(seed: str, options: argparse.Namespace, counts: Counter[str]) -> list[str]:
    """One round; what went wrong."""
    sockets = []
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            sockets.append(socket.socket(family, socket.SOCK_STREAM, IPPROTO_SMBDIRECT))
    # A listener that all processes share, so that there is somebody to connect to.
    for sock in sockets:
        own = [a for a in options.own if (":" in a) == (sock.family == socket.AF_INET6)]
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((own[0], _PORTS[0]))
            sock.listen(4)
        sock.setblocking(False)
    until = time.monotonic() + _ROUND
    workers: dict[int, int] = {}
    for index in range(_WORKERS):
        reading, writing = os.pipe()
        if pid := os.fork():
            os.close(writing)
            workers[pid] = reading
            continue
        # The child never returns from here, whatever happens.
        status = 2
        try:
            os.close(reading)
            fuzzer = Fuzzer(f"{seed} {index}", options.own, options.peer, sockets)
            fuzzer.run(until)
            os.write(writing, json.dumps(fuzzer.counts).encode())
            status = 0
        except BaseException as e:
            print(f"round {seed}, process {index}: {e!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    for sock in sockets:
        sock.close()
    return [problem for pid, pipe in workers.items() if (problem := _end(pid, pipe, until, counts))]


def _end(pid: int, pipe: int, until: float, counts: Counter[str]) -> str | None:
    """See to the end of a process; what went wrong with it."""
    status = _wait(pid, until + _ROUND)
    if status is None:
        counts["killed"] += 1
        os.kill(pid, signal.SIGKILL)
        status = _wait(pid, time.monotonic() + _END)
    if status is None:
        where = _where(pid)
        os.close(pipe)
        return f"process {pid} does not end in {_END:g} s after SIGKILL, it is in {where}"
    with open(pipe, "rb") as file:
        if said := file.read():
            counts.update(json.loads(said))
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    return f"a process ended with status {status}" if status else None


def _wait(pid: int, until: float) -> int | None:
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > until:
            return None
        time.sleep(0.02)


def _where(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/wchan").read_text() or "?"
    except OSError as e:
        return str(e)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz sockets of protocol 257.")
    parser.add_argument("--seed", default=None, help="of the run")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--first", type=int, default=0, help="round to begin with")
    parser.add_argument("--own", nargs="+", required=True, help="this host's addresses")
    parser.add_argument("--peer", nargs="+", required=True, help="addresses to connect to")
    options = parser.parse_args()
    for number in (signal.SIGIO, signal.SIGPIPE, signal.SIGURG):
        signal.signal(number, signal.SIG_IGN)
    seed = options.seed or str(int.from_bytes(os.urandom(4)))
    print(f"seed {seed}", file=sys.stderr, flush=True)
    counts: Counter[str] = Counter()
    problems: list[str] = []
    number = options.first
    end = time.monotonic() + options.seconds
    while time.monotonic() < end and not problems:
        problems = [f"round {number}: {p}" for p in play(f"{seed} {number}", options, counts)]
        number += 1
    result = {
        "seed": seed,
        "user": os.getuid(),
        "rounds": number - options.first,
        "operations": sum(n for name, n in counts.items() if " " in name),
        "counts": dict(sorted(counts.items())),
        "problems": problems,
    }
    print(json.dumps(result))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
