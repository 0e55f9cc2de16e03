"""A client that breaks every rule of [MS-SMBD], and servers that must survive it.

Runs in machines as root. The servers are ordinary sockets of protocol 257; the client is
``raw_smbd.py`` beside this file. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not TYPE_CHECKING:
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import frames
from hostility import (
    KEEPALIVE,
    PROMPTLY,
    VICTIM,
    apart,
    die,
    suffer,
    wait_for_end,
    well_behaved,
)
from pyverbs.libibverbs_enums import IBV_WR_RDMA_WRITE_WITH_IMM
from raw_smbd import HEADER_SIZE, RESPONSE_REQUESTED, Ended, Peer, data, refused, request
from violations import (
    ALLOWED,
    BAD_REQUESTS,
    DEAD_KEYS,
    FORBIDDEN,
    ODD_REQUESTS,
    OTHER_VERSIONS,
    OURS,
    immediate,
)

if TYPE_CHECKING:
    from smbdirect_testbed import smbdirect as smbdirect
else:
    import smbdirect

_LATE = KEEPALIVE + 1
"""Seconds after which a lazy server accepts."""
_CROWD = 40
"""Silent clients at once: more than the server's backlog."""

Case = Callable[[], dict[str, Any]]


# Servers.


def hold(connection: socket.socket) -> None:
    """Read nothing, until the connection ends."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    poll.poll()
    connection.close()


def pour(connection: socket.socket) -> None:
    """Read nothing, and send as much as there is room for."""
    block = frames.frame(bytes(100_000))
    with connection, contextlib.suppress(OSError):
        while True:
            connection.sendall(block)


def serve(options: argparse.Namespace) -> None:
    """Four servers at consecutive ports: one that echoes, one holds, one pours, one is lazy."""

    def run(number: int, work: Callable[[socket.socket], object], delay: float = 0) -> None:
        listener = smbdirect.smbdirect_socket(parameters=VICTIM)
        frames.serve(listener, (options.address, options.port + number), work, delay)

    kinds = [(0, frames.echo), (1, hold), (2, pour), (3, frames.echo, _LATE)]
    threads = [threading.Thread(target=run, args=kind, daemon=True) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# Cases of the client.


def port(options: argparse.Namespace, kind: int) -> int:
    """Where there is a server of some kind; an SMB server is of all kinds."""
    return int(options.port) + (0 if options.smb else kind)


def negotiated(options: argparse.Namespace, kind: int = 0, **limits: int) -> Peer:
    peer = Peer(**limits)
    peer.connect(options.address, port(options, kind))
    peer.negotiate()
    return peer


def ask(options: argparse.Namespace, message: bytes) -> dict[str, Any]:
    """Negotiate with a message of any kind; which answer there was, if any, and the end."""
    peer = Peer()
    peer.connect(options.address, options.port)
    peer.send(message)
    try:
        answer = peer.receive(PROMPTLY)
    except Ended as e:
        return {"answer": "none", "end": str(e)}
    if refused(answer):
        return {"answer": "refused", **wait_for_end(peer)}
    peer.send(data(b"well?", credits_granted=8))
    return {"answer": "accepted", "end": peer.frame(PROMPTLY).decode()}


def versions(options: argparse.Namespace) -> dict[str, Case]:
    return {case: partial(ask, options, m) for case, m in OTHER_VERSIONS.items()}


def requests(options: argparse.Namespace) -> dict[str, Case]:
    return {case: partial(ask, options, m) for case, m in BAD_REQUESTS.items()}


def odd_requests(options: argparse.Namespace) -> dict[str, Case]:
    return {case: partial(ask, options, m) for case, m in ODD_REQUESTS.items()}


def messages(options: argparse.Namespace) -> dict[str, Case]:
    """After the negotiation: messages that end the connection."""

    def case(wrong: list[bytes]) -> dict[str, Any]:
        peer = negotiated(options)
        for message in wrong:
            peer.send(message)
        return wait_for_end(peer)

    return {name: partial(case, wrong) for name, wrong in FORBIDDEN.items()}


def odd_messages(options: argparse.Namespace) -> dict[str, Case]:
    """After the negotiation: messages that do not."""

    def case(odd: list[bytes], content: bytes) -> dict[str, Any]:
        peer = negotiated(options)
        peer.send(data(credits_granted=16))
        for message in odd:
            peer.send(message)
        return {"end": "echoed" if peer.frame(PROMPTLY) == content else "something else"}

    cases: dict[str, Case] = {name: partial(case, *what) for name, what in ALLOWED.items()}

    def with_immediate() -> dict[str, Any]:
        peer = negotiated(options)
        peer.send(data(credits_granted=16))
        immediate(peer)
        return {"end": "echoed" if len(peer.frame(PROMPTLY)) == 100 else "something else"}

    return {**cases, "immediate data": with_immediate}


def credit(options: argparse.Namespace) -> dict[str, Case]:
    """More messages than credits, and credits that never come."""

    def exceed(kind: int) -> dict[str, Any]:
        """The device finds no buffer, and breaks this end; the other has to notice."""
        peer = negotiated(options, kind)
        done = {peer.send(data(bytes(1000))) for _ in range(200)}
        return {"refused": len(done) > 1, **wait_for_end(peer, KEEPALIVE + PROMPTLY)}

    def persist() -> dict[str, Any]:
        """The same, and the device tries again for ever: as if it waited for credits."""
        peer = negotiated(options, 1, retries=7)
        for _ in range(200):
            peer.send(data(bytes(1000), credits_granted=1), wait=False)
        return {"end": peer.ended(3 * KEEPALIVE) or "still there"}

    def spend() -> dict[str, Any]:
        """Use every credit for data, the last as well, while nobody reads."""
        peer = negotiated(options, 1)
        left = peer.credits
        deadline = time.monotonic() + 3 * KEEPALIVE
        while time.monotonic() < deadline:
            for _ in range(left):
                peer.send(data(bytes(1000), credits_granted=1))
            try:
                left = peer.grants(0.3)
            except Ended:
                return wait_for_end(peer)
        return {"end": "still there"}

    def grant_nothing() -> dict[str, Any]:
        """Ask for an answer without granting a credit for it."""
        peer = negotiated(options)
        peer.send(data(bytes(1000), flags=RESPONSE_REQUESTED))
        return wait_for_end(peer, KEEPALIVE + PROMPTLY)

    def starve() -> dict[str, Any]:
        """Stay alive, and never grant a credit: nothing ends that but the program."""
        peer = negotiated(options, 2)
        deadline = time.monotonic() + 2 * KEEPALIVE
        while time.monotonic() < deadline:
            peer.send(data(flags=RESPONSE_REQUESTED))
            if peer.ended(0.3):
                return wait_for_end(peer)
        return {"end": "still there"}

    def one_by_one() -> dict[str, Any]:
        """An echo of many messages, with one credit for each."""
        peer = negotiated(options)
        content = os.urandom(50_000)
        size = 8192 - HEADER_SIZE
        for at in range(0, len(content), size):
            piece = content[at : at + size]
            left = len(content) - at - len(piece)
            peer.send(data(piece, remaining=left, credits_granted=int(at == 0)))
        return {"end": "echoed" if peer.frame(PROMPTLY) == content else "something else"}

    return {
        "more than granted": partial(exceed, 0),
        "more than granted, nobody reads": partial(exceed, 1),
        "more than granted, for ever": persist,
        "all that is granted, nobody reads": spend,
        "no credits": grant_nothing,
        "no credits, but alive": starve,
        "one by one": one_by_one,
    }


def silence(options: argparse.Namespace) -> dict[str, Case]:
    def unsaid() -> dict[str, Any]:
        peer = Peer()
        peer.connect(options.address, options.port)
        return wait_for_end(peer)

    def afterwards(kind: int, *said: bytes) -> dict[str, Any]:
        peer = negotiated(options, kind)
        for message in said:
            peer.send(message)
        return wait_for_end(peer)

    def answering() -> dict[str, Any]:
        """Answer each question about life, and say nothing else."""
        peer = negotiated(options)
        peer.send(data(credits_granted=16))
        deadline = time.monotonic() + 3 * KEEPALIVE
        asked = 0
        while time.monotonic() < deadline:
            message = peer.receive(PROMPTLY)
            if message[4] & RESPONSE_REQUESTED:
                asked += 1
                peer.send(data(credits_granted=1))
        return {"end": "still there", "asked": asked}

    def crowd() -> dict[str, Any]:
        """So many that nobody else gets in, until the time to negotiate is over."""
        peers = []
        for _ in range(_CROWD):
            peer = Peer()
            try:
                peer.connect(options.address, options.port)
            except Ended:
                continue
            peers.append(peer)
        ends = {wait_for_end(peer)["end"] for peer in peers}
        return {"end": ", ".join(ends), "let in": len(peers)}

    return {
        "no request": unsaid,
        "nothing more": partial(afterwards, 0),
        "nothing more, nobody reads": partial(afterwards, 1),
        "nothing more, much to send": partial(afterwards, 2, data(credits_granted=4)),
        "nothing more, accepted late": partial(afterwards, 3),
        "within a frame": partial(afterwards, 0, data(bytes(10), remaining=90)),
        "answers only": answering,
        "a crowd": crowd,
    }


def keys(options: argparse.Namespace) -> dict[str, Case]:
    def case(access: Callable[[Peer], str]) -> dict[str, Any]:
        peer = negotiated(options)
        return {"done": access(peer), **wait_for_end(peer)}

    return {name: partial(case, access) for name, access in DEAD_KEYS.items()}


def write_with_immediate(options: argparse.Namespace) -> dict[str, Case]:
    """An RDMA write of no bytes that uses up a receive buffer: smbdirect 7.3 warns."""

    def case() -> dict[str, Any]:
        peer = negotiated(options)
        return {"done": peer.send(b"", IBV_WR_RDMA_WRITE_WITH_IMM), **wait_for_end(peer)}

    return {"write with immediate": case}


def deaths(options: argparse.Namespace) -> dict[str, Case]:
    """Killed, or gone, at each point."""

    def asking(leave: Callable[[Peer], object]) -> dict[str, Any]:
        peer = Peer()
        peer.resolve(options.address, options.port)
        peer.ask()
        leave(peer)
        return {"end": "left"}

    def answered(leave: Callable[[Peer], object]) -> dict[str, Any]:
        peer = Peer()
        peer.connect(options.address, options.port, establish=False)
        leave(peer)
        return {"end": "left"}

    def connected(leave: Callable[[Peer], object], *said: bytes) -> dict[str, Any]:
        peer = Peer()
        peer.connect(options.address, options.port)
        for message in said:
            peer.send(message, wait=False)
        leave(peer)
        return {"end": "left"}

    def talking(leave: Callable[[Peer], object], kind: int, *said: bytes) -> dict[str, Any]:
        peer = negotiated(options, kind)
        for message in said:
            peer.send(message)
        leave(peer)
        return {"end": "left"}

    cases: dict[str, Case] = {}
    ways: dict[str, Callable[[Peer], object]] = {
        "killed": lambda _: die(),
        "disconnects": Peer.disconnect,
    }
    for way, leave in ways.items():
        cases |= {
            f"{way} before the answer": partial(asking, leave),
            f"{way} at the answer": partial(answered, leave),
            f"{way} when connected": partial(connected, leave),
            f"{way} while negotiating": partial(connected, leave, request()),
            f"{way} after a wrong request": partial(connected, leave, request(max_version=0)),
            f"{way} when negotiated": partial(talking, leave, 0),
            f"{way} in a queue": partial(connected_late, options, leave),
            f"{way} within a frame": partial(talking, leave, 0, data(bytes(9), remaining=1)),
            f"{way} while data come": partial(talking, leave, 2, data(credits_granted=40)),
            f"{way} with data unread": partial(talking, leave, 1, *[data(bytes(5000))] * 20),
        }
    return cases


def connected_late(options: argparse.Namespace, leave: Callable[[Peer], object]) -> dict[str, Any]:
    """Gone before the server has accepted."""
    peer = Peer()
    peer.connect(options.address, port(options, 3))
    peer.send(request(), wait=False)
    leave(peer)
    return {"end": "left"}


_GROUPS = {
    make.__name__: make
    for make in (
        versions,
        requests,
        odd_requests,
        messages,
        odd_messages,
        credit,
        silence,
        keys,
        write_with_immediate,
        deaths,
    )
}


def attack(options: argparse.Namespace) -> None:
    """Do all cases of a group, each followed by an echo; then wait for the sockets to go."""
    cases = _GROUPS[options.group](options)
    suffer(cases, lambda: well_behaved(options.address, options.port))


def attack_smb(options: argparse.Namespace) -> None:
    """Cases against a server that speaks SMB, each followed by an SMB2 negotiation."""
    groups = (versions, requests, messages, keys, deaths)
    cases = {f"{g.__name__}: {name}": case for g in groups for name, case in g(options).items()}
    for name in OURS:
        del cases[f"messages: {name}"]
    suffer(cases, lambda: str(apart(partial(smb_negotiate, options))["end"]))


def smb_negotiate(options: argparse.Namespace) -> dict[str, Any]:
    peer = negotiated(options)
    header = b"\xfeSMB" + (64).to_bytes(2, "little") + bytes(58)
    body = (36).to_bytes(2, "little") + b"\1\0\1\0" + bytes(30) + b"\x10\2"
    peer.send(data(header + body, credits_granted=16))
    return {"end": "SMB2" if peer.frame(PROMPTLY)[:4] == b"\xfeSMB" else "something else"}


def main() -> None:
    parser = argparse.ArgumentParser(description="A hostile client of SMB-Direct.")
    actions = parser.add_subparsers(dest="action", required=True)
    for do in (serve, attack, attack_smb):
        action = actions.add_parser(do.__name__, help=do.__doc__)
        if do is attack:
            action.add_argument("group", choices=list(_GROUPS))
        action.add_argument("address")
        action.add_argument("port", type=int)
        action.set_defaults(do=do, smb=do is attack_smb)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
