"""How sockets end when what is beneath them goes away. Runs in a machine, plain Python, as root.

Makes two namespaces of its own with a link and RDMA links between, so that nothing else is
disturbed. Every case prints one line of JSON. ``smbdirect.py`` beside this file is the testbed's
``socket.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smbdirect_testbed import socket as smbdirect
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import smbdirect

_NEAR, _FAR = "sdends-near", "sdends-far"
_ADDRESS = {_NEAR: "10.99.7.1", _FAR: "10.99.7.2"}
_DEVICE = {_NEAR: "rxe_near", _FAR: "rxe_far"}
_PORT = 5490
_PATIENCE = 30.0


def name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if check and done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def references() -> int:
    return int(Path("/sys/module/smbdirect_socket/refcnt").read_text())


@contextlib.contextmanager
def namespaces() -> Iterator[None]:
    """Two namespaces, joined, each with an RDMA link."""
    try:
        for space in (_NEAR, _FAR):
            run("ip", "netns", "add", space)
            run("ip", "-n", space, "link", "set", "lo", "up")
        run("ip", "-n", _NEAR, "link", "add", "sd0", "type", "veth", "peer", "sd0", "netns", _FAR)
        for space, address in _ADDRESS.items():
            run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "sd0")
            run("ip", "-n", space, "link", "set", "sd0", "up")
        for space, other in ((_NEAR, _FAR), (_FAR, _NEAR)):
            link = json.loads(run("ip", "-j", "-n", other, "link", "show", "sd0"))
            mac = link[0]["address"]
            neighbour = ["replace", _ADDRESS[other], "lladdr", mac, "dev", "sd0"]
            run("ip", "-n", space, "neigh", *neighbour, "nud", "permanent")
            link_add = ["rdma", "link", "add", _DEVICE[space], "type", "rxe", "netdev", "sd0"]
            run("ip", "netns", "exec", space, *link_add)
        yield
    finally:
        for space in (_NEAR, _FAR):
            delete = ["rdma", "link", "del", _DEVICE[space]]
            run("ip", "netns", "exec", space, *delete, check=False)
            run("ip", "netns", "del", space, check=False)


class Actor:
    """This program once more, in a namespace; answers commands with lines of JSON."""

    def __init__(self, space: str) -> None:
        command = ["ip", "netns", "exec", space, sys.executable, "-I", __file__, "act", space]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def tell(self, *command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(" ".join(command) + "\n")

    def hear(self) -> Any:
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], _PATIENCE)[0]:
            return "no answer"
        line = self.process.stdout.readline()
        return json.loads(line) if line else "dead"

    def ask(self, *command: str) -> Any:
        self.tell(*command)
        return self.hear()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def act(options: argparse.Namespace) -> None:
    """Sockets on command: listen, bind, connect, accept, send, receive, wait."""
    sockets: dict[str, socket.socket] = {}
    address = (_ADDRESS[options.space], _PORT)
    for line in sys.stdin:
        what, which, *rest = line.split()
        begun = time.monotonic()
        try:
            result: Any = "done"
            if what == "listen":
                sockets[which] = smbdirect.smbdirect_socket()
                sockets[which].bind(("0.0.0.0" if rest else address[0], _PORT + len(rest)))
                sockets[which].listen(4)
            elif what == "bind":
                sockets[which] = smbdirect.smbdirect_socket()
                sockets[which].bind((address[0], 0))
            elif what == "connect":
                sockets.setdefault(which, smbdirect.smbdirect_socket())
                sockets[which].connect((_ADDRESS[rest[0]], _PORT))
            elif what == "accept":
                sockets[rest[0]], _ = sockets[which].accept()
            elif what == "send":
                block = struct.pack(">I", 65536) + bytes(65536)
                sent = 0
                try:
                    while time.monotonic() < begun + _PATIENCE:
                        sent += sockets[which].send(block)
                except OSError as e:
                    result = [sent, name(e)]
            elif what == "receive":
                got = 0
                try:
                    while piece := sockets[which].recv(1 << 20):
                        got += len(piece)
                    result = [got, "end of stream"]
                except OSError as e:
                    result = [got, name(e)]
        except OSError as e:
            result = name(e)
        print(json.dumps([result, time.monotonic() - begun]), flush=True)


def connected() -> tuple[Actor, Actor]:
    """Actors near and far with a connection named ``c``."""
    near, far = Actor(_NEAR), Actor(_FAR)
    near.ask("listen", "l")
    near.tell("accept", "l", "c")
    far.ask("connect", "c", _NEAR)
    near.hear()
    return near, far


def timed(*command: str) -> float:
    begun = time.monotonic()
    run(*command)
    return time.monotonic() - begun


def device(_: argparse.Namespace) -> dict[str, Any]:
    """An RDMA link is deleted with data in flight, a bound socket and two listeners on it."""
    with namespaces():
        near, far = connected()
        results: dict[str, Any] = {"bound": near.ask("bind", "b")[0]}
        results["wildcard"] = near.ask("listen", "w", "any")[0]
        far.tell("send", "c")
        near.tell("receive", "c")
        time.sleep(0.5)
        delete = ["rdma", "link", "del", _DEVICE[_NEAR]]
        results["deletion seconds"] = timed("ip", "netns", "exec", _NEAR, *delete)
        begun = time.monotonic()
        results["near"] = near.hear()[0]
        results["far"] = far.hear()[0]
        results["seconds"] = time.monotonic() - begun
        results["listener"] = near.ask("accept", "l", "x")[0]
        link_add = ["rdma", "link", "add", _DEVICE[_NEAR], "type", "rxe", "netdev", "sd0"]
        run("ip", "netns", "exec", _NEAR, *link_add)
        time.sleep(0.5)
        results["bound again"] = near.ask("connect", "b", _NEAR)[0]
        near.kill()
        far.kill()
        return results


def namespace(_: argparse.Namespace) -> dict[str, Any]:
    """A namespace dies with its process, with data in flight and with idle sockets."""
    before = references()
    with namespaces():
        near, far = connected()
        far.ask("bind", "b")
        far.ask("listen", "l")
        near.tell("receive", "c")
        far.tell("send", "c")
        time.sleep(0.5)
        far.kill()
        results: dict[str, Any] = {"deletion seconds": timed("ip", "netns", "del", _FAR)}
        begun = time.monotonic()
        results["near"] = near.hear()[0]
        results["seconds"] = time.monotonic() - begun
        near.kill()
    deadline = time.monotonic() + _PATIENCE
    while references() > before and time.monotonic() < deadline:
        time.sleep(0.1)
    results["left"] = references() - before
    results["gone seconds"] = time.monotonic() - begun
    return results


def kept(_: argparse.Namespace) -> dict[str, Any]:
    """A namespace is deleted while a process holds its sockets; its link is deleted, too."""
    with namespaces():
        near, far = connected()
        near.tell("receive", "c")
        far.tell("send", "c")
        time.sleep(0.5)
        run("ip", "netns", "del", _FAR)
        results: dict[str, Any] = {}
        results["deletion seconds"] = timed("ip", "-n", _NEAR, "link", "del", "sd0")
        begun = time.monotonic()
        results["near"] = near.hear()[0]
        results["far"] = far.hear()[0]
        results["seconds"] = time.monotonic() - begun
        results["listener"] = near.ask("accept", "l", "x")[0]
        near.kill()
        far.kill()
        return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Ends of SMB-Direct sockets.")
    actions = parser.add_subparsers(dest="action", required=True)
    for do in (device, namespace, kept):
        actions.add_parser(do.__name__, help=do.__doc__).set_defaults(do=do)
    actor = actions.add_parser("act", help=act.__doc__)
    actor.add_argument("space")
    actor.set_defaults(do=act)
    options = parser.parse_args()
    os.umask(0o077)
    result = options.do(options)
    if result is not None:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
