"""A machine's hosts, links and RDMA links.

A host in a namespace is a process that sleeps in network, mount and UTS namespaces of its own.
Commands enter these, so that a mount made by one command is there for the next (``ip netns exec``
would give every command a mount namespace of its own).
"""

from __future__ import annotations

import _socket as socket
import os

from smbdirect_testbed.agent import kernel, nldev, rtnetlink
from smbdirect_testbed.agent.cheap_imports import partial, signal
from smbdirect_testbed.agent.commands import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from smbdirect_testbed.agent.namespaces import Namespaces
    from smbdirect_testbed.agent.requests import Link, LinkEnd, RdmaLink

    K = TypeVar("K")
    T = TypeVar("T")

_SO_TIMESTAMP = 29
_FIRST_INDEX = 1000
"""Of interfaces in namespaces. By themselves, the first of each namespace have the same index; and
then the kernel takes two ends of a pair for no pair, and up to a second to find that they are up
(``linkwatch_urgent_event`` in ``net/core/link_watch.c``)."""
_INTERFACES = "/sys/class/net"
_RDMA = "/sys/class/infiniband"


class Hosts:
    """What was made, so that it can be unmade in the opposite order.

    :param namespaces: how the hosts' namespaces are entered
    """

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        # As long as some socket wants them, the kernel stamps packets. Otherwise each ping and
        # tcpdump has it patch that in and out of its code, and of that an emulated machine with
        # two processors may die: "Oops: int3" in __netif_receive_skb_core.
        self._stamped = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._stamped.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMP, 1)
        self.holders: dict[str, int] = {}
        self.interfaces: list[tuple[str, str]] = []
        self.rdma_links: list[tuple[str, str]] = []

    def make_hosts(self, namespaces: list[str], machine_stack: list[str]) -> dict[str, int]:
        """Make the hosts; return the process id to enter each by (0: the machine's own stack)."""
        started = {name: _start_holder(name) for name in namespaces}
        self.holders |= {name: pid for name, (pid, _) in started.items()}
        for name, (_, ready) in started.items():
            _wait_for_holder(name, ready)
        for name in machine_stack:
            self.holders[name] = 0
        return self.holders

    def make_links(self, links: list[Link]) -> None:
        """Join hosts in pairs by veth pairs.

        Permanent neighbour entries are set where a link wants them: without, the first RDMA
        connection waits 5 s for the address resolution of ib_core.
        """
        ends = [end for link in links for end in link["ends"]]
        for link in links:
            a, b = link["ends"]
            first = _FIRST_INDEX + 2 * len(self.interfaces)
            pair = [
                rtnetlink.veth_end(
                    e["device"], e["mac"], link["mtu"], self.holders[e["host"]], first + side
                )
                for side, e in enumerate((a, b))
            ]
            with _Doing(f"a link between hosts {a['host']} and {b['host']}"):
                rtnetlink.make_veth(*pair)
            # The other end goes with it.
            self.interfaces.append((a["host"], a["device"]))
        for link in links:
            for end, peer in (link["ends"], link["ends"][::-1]):
                # One after the other: threads at the same time would mostly wait for each other.
                known = peer if link["neighbours"] else None
                self._in_stack(end["host"], partial(_settle, end, known))
                self._shape(end, link["delay"], link["loss"])
        for end in ends:
            self._wait_up(end)

    def place_machine_link(
        self,
        end: LinkEnd,
        peer: LinkEnd,
        mtu: int,
        neighbours: bool,
        delay: float,
        loss: float,
    ) -> None:
        """Give a host its end of a link to another machine: an interface that is there already.

        See :meth:`make_links`.
        """
        (found,) = (
            name
            for name in os.listdir(_INTERFACES)
            if kernel.read(f"{_INTERFACES}/{name}/address").strip() == end["mac"]
        )
        pid = self.holders[end["host"]]
        with _Doing(f"interface {end['device']} of host {end['host']}"):
            rtnetlink.switch(found, on=False)
            rtnetlink.move(found, end["device"], mtu, pid)
        self._in_stack(end["host"], partial(_settle, end, peer if neighbours else None))
        self._shape(end, delay, loss)
        self._wait_up(end)

    def make_rdma_links(self, links: list[RdmaLink]) -> None:
        """Put RDMA links on interfaces; wait until they are active and have their addresses.

        One after the other in each stack: rdma_rxe refuses a link with EPERM while another is being
        made in the same namespace.
        """
        of_stacks = _grouped([(self.holders[link["host"]], link) for link in links])
        self._namespaces.call_all(
            {p: partial(self._add_rdma_links, of_stacks[p]) for p in of_stacks}
        )
        for link in links:
            name, port = link["name"], f"{_RDMA}/{link['name']}/ports/1"
            kernel.wait(partial(_active, port), f"RDMA link {name} to be active")
            kernel.wait(
                partial(_has_gids, port, link["gids"]), f"{link['gids']} GIDs on RDMA link {name}"
            )

    def _add_rdma_links(self, links: list[RdmaLink]) -> None:
        for link in links:
            name, kind, device = link["name"], link["kind"], link["device"]
            with _Doing(f"RDMA link {name} of type {kind} on {device} of host {link['host']}"):
                nldev.add_link(name, kind, device)
            kernel.write_sysctls(link["sysctls"])
            self.rdma_links.append((link["host"], name))

    def unmake(self) -> None:
        """Remove RDMA links, then links, then hosts; every removal is waited for.

        An RDMA link outlives nothing: removed after its namespace, it would be left behind.
        """
        # One after the other: a list of links that is made while some go does not have all of them.
        while self.rdma_links:
            host, name = self.rdma_links.pop()
            self._in_stack(host, partial(nldev.remove_link, name))
            kernel.wait(partial(_gone, f"{_RDMA}/{name}"), f"RDMA link {name} to go")
        while self.interfaces:
            host, device = self.interfaces.pop()
            if self._in_stack(host, partial(os.path.exists, f"{_INTERFACES}/{device}")):
                self._in_stack(host, partial(rtnetlink.remove, device))
        self._namespaces.leave()
        for pid in self.holders.values():
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self.holders.clear()

    def _shape(self, end: LinkEnd, delay: float, loss: float) -> None:
        """Have packets come late or not at all; nothing happens without need."""
        what = ["delay", f"{delay}ms"] if delay else []
        what += ["loss", f"{loss}%"] if loss else []
        if what:
            tc = ["tc", "qdisc", "add", "dev", end["device"], "root", "netem", *what]
            call = Call([*tc, "limit", "100000"], self._namespaces, self.holders[end["host"]])
            if problem := call.finish():
                raise OSError(f"on host {end['host']}: {problem}")

    def _wait_up(self, end: LinkEnd) -> None:
        host, device = end["host"], end["device"]
        state = partial(kernel.read, f"{_INTERFACES}/{device}/operstate")
        kernel.wait(
            # Interfaces without a notion of a carrier never say more than "unknown".
            lambda: self._in_stack(host, state).strip() in ("up", "unknown"),
            f"interface {device} of host {host} to be up",
        )

    def _in_stack(self, host: str, do: Callable[[], T]) -> T:
        return self._namespaces.call(self.holders[host], do)


class _Doing:
    """Tells what it was that the kernel refused."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise OSError(f"{self._what}: {error.strerror or error}") from error


def _settle(end: LinkEnd, peer: LinkEnd | None) -> None:
    """Give an interface in its host its addresses, and switch it on.

    :param peer: the other end, if it is to be known as a neighbour for good
    """
    device = end["device"]
    with _Doing(f"interface {device} of host {end['host']}"):
        # Addresses here are nobody else's.
        kernel.write_sysctls({f"net/ipv6/conf/{device}/accept_dad": "0"})
        for address in (end["ipv4"], end["ipv6"]):
            rtnetlink.add_address(device, address)
        rtnetlink.switch(device, on=True)
        if peer:
            for address in (peer["ipv4"], peer["ipv6"]):
                rtnetlink.add_neighbour(device, address.partition("/")[0], peer["mac"])


def _grouped(pairs: list[tuple[K, T]]) -> dict[K, list[T]]:
    found: dict[K, list[T]] = {}
    for key, thing in pairs:
        found.setdefault(key, []).append(thing)
    return found


def _gone(path: str) -> bool:
    return not os.path.exists(path)


def _active(port: str) -> bool:
    return "ACTIVE" in kernel.read(f"{port}/state")


def _has_gids(port: str, wanted: int) -> bool:
    # The table is filled from its start; rxe's has 1024 entries, too many to read under TCG.
    return all(_gid_is_set(f"{port}/gids/{n}") for n in range(wanted))


def _gid_is_set(gid: str) -> bool:
    try:
        return kernel.read(gid).strip("0:\n") != ""
    except OSError:
        return False


def _start_holder(name: str) -> tuple[int, int]:
    """Start the process that holds a host's namespaces; its id, and what tells when it has them."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            kernel.unshare(kernel.CLONE_NEWNET | kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS)
            kernel.mount("none", "/", "none", kernel.MS_REC_PRIVATE)
            kernel.mount("sysfs", "/sys", "sysfs", 0)
            socket.sethostname(name)
            kernel.write_sysctls({"net/ipv6/conf/default/accept_dad": "0"})
            rtnetlink.switch("lo", on=True)
            os.write(tell, b"1")
        except BaseException as e:
            os.write(tell, str(e).encode())
            os._exit(1)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.execvp("sleep", ["sleep", "infinity"])
    os.close(tell)
    return pid, ready


def _wait_for_holder(name: str, ready: int) -> None:
    said = os.read(ready, 1000).decode()
    os.close(ready)
    if said != "1":
        raise OSError(f"cannot make host {name}: {said}")
