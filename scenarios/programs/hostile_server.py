"""A server that breaks every rule of [MS-SMBD], and a client that must survive it.

Runs in machines as root. The client is an ordinary socket of protocol 257; the server is
``raw_smbd.py`` beside this file. The client asks for each case over TCP. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not TYPE_CHECKING:
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import frames
from hostility import KEEPALIVE, PROMPTLY, VICTIM, apart, die, suffer, wait_for_end
from raw_smbd import Peer, data, response
from violations import (
    ALLOWED,
    BAD_ANSWERS,
    DEAD_KEYS,
    FORBIDDEN,
    ODD_ANSWERS,
    OTHER_ANSWERS,
)

if TYPE_CHECKING:
    from smbdirect_testbed import smbdirect as smbdirect
else:
    import smbdirect

_LARGE = 150_000
"""Bytes of a frame that needs more credits than a stingy server grants."""

Act = Callable[[Peer], dict[str, Any]]


# The server's part.


def answered(peer: Peer, answer: bytes | None = None) -> None:
    """Accept, and answer the negotiation."""
    peer.accept()
    peer.receive(PROMPTLY)
    peer.send(response() if answer is None else answer)


def refuse(peer: Peer) -> dict[str, Any]:
    peer.reject()
    return {"end": "left"}


def wait_then_answer(seconds: float, peer: Peer) -> dict[str, Any]:
    """Leave a connection request unanswered."""
    time.sleep(seconds)
    return {"end": "left"}


def say(answer: bytes, peer: Peer) -> dict[str, Any]:
    answered(peer, answer)
    return wait_for_end(peer)


def say_nothing(peer: Peer) -> dict[str, Any]:
    peer.accept()
    return wait_for_end(peer)


def offer_no_buffer(peer: Peer) -> dict[str, Any]:
    """So that the negotiation cannot even arrive."""
    peer.accept(buffers=False)
    return wait_for_end(peer)


def misbehave(messages: list[bytes], peer: Peer) -> dict[str, Any]:
    answered(peer)
    peer.granted(PROMPTLY)
    for message in messages:
        peer.send(message)
    return wait_for_end(peer)


def be_odd(messages: list[bytes], content: bytes, peer: Peer) -> dict[str, Any]:
    """Send a frame; the client sends it back."""
    answered(peer)
    peer.granted(PROMPTLY)
    for message in messages:
        peer.send(message)
    return {"end": "echoed" if peer.frame(PROMPTLY) == content else "something else"}


def serve_oddly(answer: bytes, peer: Peer) -> dict[str, Any]:
    answered(peer, answer)
    peer.granted(PROMPTLY)
    peer.send(data(b"well?", credits_granted=1))
    return {"end": peer.frame(PROMPTLY).decode()}


def reach(access: Callable[[Peer], str], peer: Peer) -> dict[str, Any]:
    answered(peer)
    return {"done": access(peer), **wait_for_end(peer)}


def leave(stage: str, how: Callable[[Peer], object], peer: Peer) -> dict[str, Any]:
    if stage != "asked":
        peer.accept()
    if stage in ("negotiating", "negotiated"):
        peer.receive(PROMPTLY)
    if stage == "negotiated":
        peer.send(response())
    how(peer)
    return {"end": "left"}


def _table(act: Callable[..., dict[str, Any]], cases: dict[str, Any]) -> dict[str, Act]:
    return {
        name: partial(act, *(what if isinstance(what, tuple) else (what,)))
        for name, what in cases.items()
    }


_STAGES = ("asked", "connected", "negotiating", "negotiated")
GROUPS: dict[str, dict[str, Act]] = {
    "connecting": {
        "refuses": refuse,
        "answers no request": partial(wait_then_answer, 4.0),
        "negotiates not": say_nothing,
        "has no buffer": offer_no_buffer,
    },
    "other_answers": _table(say, OTHER_ANSWERS),
    "answers": _table(say, BAD_ANSWERS),
    "odd_answers": _table(serve_oddly, ODD_ANSWERS),
    "messages": _table(misbehave, FORBIDDEN),
    "odd_messages": _table(be_odd, ALLOWED),
    "silence": {
        "nothing more": partial(misbehave, []),
        "within a frame": partial(misbehave, [data(bytes(10), remaining=90)]),
        "no credits": partial(say, response(credits_granted=1)),
    },
    "keys": _table(reach, DEAD_KEYS),
    "deaths": {
        f"{way}, {stage}": partial(leave, stage, how)
        for way, how in {"killed": lambda _: die(), "disconnects": Peer.disconnect}.items()
        for stage in _STAGES
        if not (stage == "asked" and way == "disconnects")
    },
}


def serve(options: argparse.Namespace) -> None:
    """Do the cases that the client asks for."""
    good = smbdirect.smbdirect_socket()
    good.bind((options.address, options.port + 2))
    good.listen(4)

    def part(act: Act, control: socket.socket) -> dict[str, Any]:
        peer = Peer()
        peer.listen(options.address, options.port + 1)
        control.sendall(b"ready\n")
        peer.requested()
        return act(peer)

    with socket.create_server((options.address, options.port)) as listener:
        print(json.dumps({"listening": options.port}), flush=True)
        while True:
            control, _ = listener.accept()
            with control, control.makefile() as asked:
                group, _, case = asked.readline().strip().partition(": ")
                if group:
                    result = apart(partial(part, GROUPS[group][case], control))
                else:
                    control.sendall(b"ready\n")
                    connection, _ = good.accept()
                    result = {"end": frames.echo(connection)}
                control.sendall(json.dumps(result).encode())


# The client's part.


def ordinary(options: argparse.Namespace, what: str, number: int, size: int) -> dict[str, Any]:
    """Connect to a server that does what it is asked to; echo, or send; how that ended."""
    connection = smbdirect.smbdirect_socket(parameters=VICTIM)
    frames.limit(connection, PROMPTLY + 2 * KEEPALIVE)
    result: dict[str, Any] = {}
    with socket.create_connection((options.address, options.port)) as control:
        control.sendall(what.encode() + b"\n")
        answers = control.makefile()
        answers.readline()
        begun = time.monotonic()
        with connection:
            address = (options.address, options.port + number)
            result["connect"] = frames.outcome(lambda: connection.connect(address))
            if result["connect"] == "ok" and number == 2:
                result["then"] = frames.echoed(connection)
            elif result["connect"] == "ok":
                if size:
                    frames.outcome(lambda: connection.sendall(frames.frame(bytes(size))))
                result["then"] = frames.echo(connection)
            result["client seconds"] = round(time.monotonic() - begun, 2)
        result["server"] = json.loads(answers.read() or "{}")
    return result


def meet(options: argparse.Namespace) -> None:
    """Meet the server in all cases of a group, each followed by a good one."""

    def good() -> str:
        return str(ordinary(options, "", 2, 0)["then"])

    def case(name: str) -> Callable[[], dict[str, Any]]:
        size = _LARGE if name == "no credits" else 0
        return partial(ordinary, options, f"{options.group}: {name}", 1, size)

    suffer({name: case(name) for name in GROUPS[options.group]}, good)


def main() -> None:
    parser = argparse.ArgumentParser(description="A hostile server of SMB-Direct.")
    actions = parser.add_subparsers(dest="action", required=True)
    for do in (serve, meet):
        action = actions.add_parser(do.__name__, help=do.__doc__)
        if do is meet:
            action.add_argument("group", choices=list(GROUPS))
        action.add_argument("address")
        action.add_argument("port", type=int)
        action.set_defaults(do=do)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
