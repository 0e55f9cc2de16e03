"""How sockets end when what is beneath them goes away. Runs in a machine, plain Python, as root.

Makes two namespaces of its own with a link and RDMA links between, so that nothing else is
disturbed. Every case prints one line of JSON. ``smbdirect.py`` beside this file is the testbed's
``socket.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smbdirect_testbed import smbdirect as smbdirect
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import smbdirect

import frames

_NEAR, _FAR = "sdends-near", "sdends-far"
_ADDRESS = {_NEAR: "10.99.7.1", _FAR: "10.99.7.2"}
_DEVICE = {_NEAR: "rxe_near", _FAR: "rxe_far"}
_PORT = 5490
_DEVICES = Path("/sys/class/infiniband")
_FLOW = 50
"""Packets that make a stream of data."""
_PATIENT = smbdirect.ConnectionParameters()
_HASTY = smbdirect.ConnectionParameters(
    connect_timeout_ms=2000,
    negotiate_timeout_ms=2000,
    keepalive_interval_ms=1000,
    keepalive_timeout_ms=1000,
)


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if check and done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def wait_for(condition: Callable[[], bool], what: str) -> None:
    if not frames.until(condition):
        sys.exit(f"timed out after {frames.PATIENCE} s waiting for {what}")


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
            add_device(space)
        yield
    finally:
        for space in (_NEAR, _FAR):
            delete_device(space, check=False)
            run("ip", "netns", "del", space, check=False)


def add_device(space: str) -> None:
    """Add the RDMA link of a namespace; return when it can be used."""
    link_add = ["rdma", "link", "add", _DEVICE[space], "type", "rxe", "netdev", "sd0"]
    run("ip", "netns", "exec", space, *link_add)
    octets = bytes(map(int, _ADDRESS[space].split(".")))
    wanted = f"ffff:{octets[:2].hex()}:{octets[2:].hex()}"
    gids = _DEVICES / _DEVICE[space] / "ports/1/gids"

    def usable() -> bool:
        return any(wanted in gid.read_text() for gid in gids.iterdir())

    wait_for(usable, f"{_DEVICE[space]} to have its address")


def delete_device(space: str, *, check: bool = True) -> float:
    """Delete the RDMA link of a namespace; the seconds that took."""
    begun = time.monotonic()
    delete = ["rdma", "link", "del", _DEVICE[space]]
    run("ip", "netns", "exec", space, *delete, check=check)
    return time.monotonic() - begun


def flowing() -> None:
    """Wait until data are under way."""
    counter = _DEVICES / _DEVICE[_NEAR] / "ports/1/hw_counters/rcvd_pkts"
    before = int(counter.read_text())
    wait_for(lambda: int(counter.read_text()) > before + _FLOW, "data to flow")


class Actor:
    """This program once more, in a namespace; answers commands with lines of JSON."""

    def __init__(self, space: str, *, hasty: bool = False) -> None:
        pace = ["--hasty"] if hasty else []
        command = ["ip", "netns", "exec", space, sys.executable, "-I", __file__, "act", space]
        self.process = subprocess.Popen(
            [*command, *pace], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def tell(self, *command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(" ".join(command) + "\n")

    def hear(self) -> Any:
        """What came of a command, and how long it took."""
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], frames.PATIENCE)[0]:
            return ["no answer", 0.0]
        line = self.process.stdout.readline()
        return json.loads(line) if line else ["dead", 0.0]

    def ask(self, *command: str) -> Any:
        self.tell(*command)
        return self.hear()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def act(options: argparse.Namespace) -> None:
    """Sockets on command: listen, bind, connect, accept, send, receive."""
    sockets: dict[str, socket.socket] = {}
    parameters = _HASTY if options.hasty else _PATIENT

    def new() -> socket.socket:
        return smbdirect.smbdirect_socket(parameters=parameters)

    for line in sys.stdin:
        what, which, *rest = line.split()
        begun = time.monotonic()
        try:
            result = do(sockets, new, _ADDRESS[options.space], what, which, rest)
        except OSError as e:
            result = frames.name(e)
        print(json.dumps([result, time.monotonic() - begun]), flush=True)


def do(
    sockets: dict[str, socket.socket],
    new: Callable[[], socket.socket],
    own: str,
    what: str,
    which: str,
    rest: list[str],
) -> Any:
    begun = time.monotonic()
    count = 0
    if what == "listen":
        sockets[which] = new()
        sockets[which].bind(("0.0.0.0" if rest else own, _PORT + len(rest)))
        sockets[which].listen(4)
    elif what == "bind":
        sockets[which] = new()
        sockets[which].bind((own, 0))
    elif what == "connect":
        sockets.setdefault(which, new()).connect((_ADDRESS[rest[0]], _PORT + len(rest) - 1))
    elif what == "accept":
        sockets[rest[0]], _ = sockets[which].accept()
    elif what == "close":
        if which in sockets:
            sockets.pop(which).close()
    elif what == "exchange":
        return frames.echoed(sockets[which])
    elif what == "echo":
        threading.Thread(
            target=frames.accept_all, args=(sockets[which], frames.echo), daemon=True
        ).start()
    elif what == "send":
        block = frames.frame(bytes(65536))
        try:
            while time.monotonic() < begun + frames.PATIENCE:
                count += sockets[which].send(block)
        except OSError as e:
            return [count, frames.name(e)]
    elif what == "receive":
        try:
            while piece := sockets[which].recv(1 << 20):
                count += len(piece)
        except OSError as e:
            return [count, frames.name(e)]
        return [count, "end of stream"]
    return "done"


@contextlib.contextmanager
def actors(*, hasty: bool = False) -> Iterator[tuple[Actor, Actor]]:
    """Near and far, in namespaces of theirs; near listens."""
    with namespaces():
        near, far = Actor(_NEAR, hasty=hasty), Actor(_FAR, hasty=hasty)
        try:
            near.ask("listen", "l")
            yield near, far
        finally:
            near.kill()
            far.kill()


def connect(near: Actor, far: Actor) -> None:
    """A connection named ``c`` at both ends."""
    near.tell("accept", "l", "c")
    far.ask("connect", "c", _NEAR)
    near.hear()


def device(_: argparse.Namespace) -> dict[str, Any]:
    """An RDMA link is deleted with data in flight, a bound socket and two listeners on it."""
    with actors() as (near, far):
        connect(near, far)
        results: dict[str, Any] = {"bound": near.ask("bind", "b")[0]}
        results["wildcard"] = near.ask("listen", "w", "any")[0]
        far.tell("send", "c")
        near.tell("receive", "c")
        flowing()
        results["deletion seconds"] = delete_device(_NEAR)
        begun = time.monotonic()
        results["near"] = near.hear()[0]
        results["far"] = far.hear()[0]
        results["seconds"] = time.monotonic() - begun
        results["listener"] = near.ask("accept", "l", "x")[0]
        add_device(_NEAR)
        results["bound again"] = near.ask("connect", "b", _NEAR)[0]
        return results


def device_of_attempt(_: argparse.Namespace) -> dict[str, Any]:
    """An RDMA link is deleted while somebody waits to be accepted, at either end."""
    results: dict[str, Any] = {}
    for space in (_NEAR, _FAR):
        with actors() as (near, far):
            far.tell("connect", "c", _NEAR)
            wait_for(lambda: established() > 0, "a connection that waits to be accepted")
            seconds = delete_device(space)
            error, _ = far.hear()
            accepted = near.ask("accept", "l", "x")[0] if space == _NEAR else "not asked"
            results[space] = [error, accepted, seconds]
    return results


def established() -> int:
    """Connected queue pairs of the far namespace's device."""
    return queue_pairs(_FAR).count(("RC", "RTS"))


def queue_pairs(space: str) -> list[tuple[str, str]]:
    """The types and states of all queue pairs of a namespace's device."""
    text = run("rdma", "-j", "resource", "show", "qp", "link", _DEVICE[space])
    return [(qp.get("type", ""), qp.get("state", "")) for qp in json.loads(text or "[]")]


def revive() -> list[str]:
    """Replace those devices that cannot send a connection request any more.

    rxe 7.3 breaks a device's queue pair for management messages when it has no route for one: after
    that, it makes no connection for anybody.
    """
    broken = [s for s in (_NEAR, _FAR) if ("GSI", "RTS") not in queue_pairs(s)]
    for space in broken:
        delete_device(space)
        add_device(space)
    return broken


def namespace(_: argparse.Namespace) -> dict[str, Any]:
    """A namespace dies with its process, with data in flight and with idle sockets."""
    before = frames.references()
    with actors() as (near, far):
        connect(near, far)
        far.ask("bind", "b")
        far.ask("listen", "l")
        near.tell("receive", "c")
        far.tell("send", "c")
        flowing()
        far.kill()
        begun = time.monotonic()
        run("ip", "netns", "del", _FAR)
        results: dict[str, Any] = {"deletion seconds": time.monotonic() - begun}
        begun = time.monotonic()
        results["near"] = near.hear()[0]
        results["seconds"] = time.monotonic() - begun
    frames.until(lambda: frames.references() <= before)
    results["left"] = frames.references() - before
    results["gone seconds"] = time.monotonic() - begun
    return results


def kept(_: argparse.Namespace) -> dict[str, Any]:
    """A namespace is deleted while a process holds its sockets; its link is deleted, too."""
    with actors() as (near, far):
        connect(near, far)
        near.tell("receive", "c")
        far.tell("send", "c")
        flowing()
        run("ip", "netns", "del", _FAR)
        results: dict[str, Any] = {}
        begun = time.monotonic()
        run("ip", "-n", _NEAR, "link", "del", "sd0")
        results["deletion seconds"] = time.monotonic() - begun
        begun = time.monotonic()
        results["near"] = near.hear()[0]
        results["far"] = far.hear()[0]
        results["seconds"] = time.monotonic() - begun
        results["listener"] = near.ask("accept", "l", "x")[0]
        return results


def down(_: argparse.Namespace) -> dict[str, Any]:
    """The link goes down in every state, and comes back; sockets are told, or go on."""
    results: dict[str, Any] = {}
    with actors(hasty=True) as (near, far):
        near.ask("listen", "w", "any")
        near.ask("echo", "l")
        with link_down():
            results["connect"] = far.ask("connect", "c", _NEAR)
        results["listener"] = reconnect(far)

        far.tell("connect", "d", _NEAR, "any")
        wait_for(lambda: established() > 1, "a connection that waits to be accepted")
        with link_down():
            results["waiting"] = far.hear()
        results["revived"] = revive()
        near.ask("listen", "m", "any", "any", "any")
        near.ask("echo", "m")
        results["listener again"] = reconnect(far, "any", "any", "any")

        near.ask("listen", "v", "any", "any")
        near.tell("accept", "v", "e")
        far.ask("connect", "e", _NEAR, "any", "any")
        near.hear()
        near.tell("receive", "e")
        far.tell("send", "e")
        flowing()
        with link_down():
            begun = time.monotonic()
            results["near"] = near.hear()[0]
            results["far"] = far.hear()[0]
            results["seconds"] = time.monotonic() - begun
        results["revived afterwards"] = revive()
        results["afterwards"] = reconnect(far, "any", "any", "any")
        with link_down():
            pass
        results["short"] = far.ask("exchange", "c")[0]
    print(json.dumps(results), file=sys.stderr)
    return results


def weak(options: argparse.Namespace) -> dict[str, Any]:
    """A device can do less than is needed; then it can again."""
    results: dict[str, Any] = {}
    for lacking in ("frwr", "sge"):
        with actors() as (near, far):
            far.ask("listen", "l")
            near.ask("listen", "w", "any")
            insmod = ["insmod", options.module, "netdev=sd0", f"lacks={lacking}"]
            run("ip", "netns", "exec", _NEAR, *insmod)
            try:
                results[lacking] = {
                    "bind": near.ask("bind", "b"),
                    "connect": near.ask("connect", "c", _FAR),
                    "connect to": far.ask("connect", "c", _NEAR, "any"),
                }
            finally:
                run("rmmod", Path(options.module).stem)
            results[lacking]["afterwards"] = near.ask("bind", "b")
    return results


@contextlib.contextmanager
def link_down() -> Iterator[None]:
    """The far end's link is down while the context lasts; its neighbours go with it."""
    run("ip", "-n", _FAR, "link", "set", "sd0", "down")
    yield
    run("ip", "-n", _FAR, "link", "set", "sd0", "up")
    link = json.loads(run("ip", "-j", "-n", _NEAR, "link", "show", "sd0"))
    entry = ["replace", _ADDRESS[_NEAR], "lladdr", link[0]["address"], "dev", "sd0"]
    run("ip", "-n", _FAR, "neigh", *entry, "nud", "permanent")


def reconnect(far: Actor, *port: str) -> str:
    """Connect to the echo server as soon as that works again; what an exchange of data says."""
    said: list[str] = []

    def connected() -> bool:
        far.ask("close", "c")
        said.append(far.ask("connect", "c", _NEAR, *port)[0])
        return said[-1] == "done"

    return str(far.ask("exchange", "c")[0]) if frames.until(connected) else said[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Ends of SMB-Direct sockets.")
    actions = parser.add_subparsers(dest="action", required=True)
    for case in (device, device_of_attempt, namespace, kept, down, weak):
        action = actions.add_parser(case.__name__, help=case.__doc__)
        if case is weak:
            action.add_argument("module", help="smbdirect_weak_device.ko")
        action.set_defaults(do=case)
    actor = actions.add_parser("act", help=act.__doc__)
    actor.add_argument("space")
    actor.add_argument("--hasty", action="store_true", help="short times")
    actor.set_defaults(do=act)
    options = parser.parse_args()
    os.umask(0o077)
    result = options.do(options)
    if result is not None:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
