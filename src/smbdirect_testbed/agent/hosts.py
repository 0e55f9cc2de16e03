"""A machine's hosts, links and RDMA links.

A host in a namespace is a process that sleeps in network, mount and UTS namespaces of its own.
Commands enter these with nsenter, so that a mount made by one command is there for the next
(``ip netns exec`` would give every command a mount namespace of its own).
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from smbdirect_testbed.agent import kernel
from smbdirect_testbed.agent.netlink import IPRoute

_IFA_F_NODAD = 0x02
_SO_TIMESTAMP = 29
_NUD_PERMANENT = 0x80
_RDMA = "/sys/class/infiniband"

RunInStack = Callable[[int, list[str]], object]
"""Runs a command in the namespaces of a process; those of this one for 0."""


class Hosts:
    """What was made, so that it can be unmade in the opposite order.

    :param run: runs a command and raises OSError when it fails
    """

    def __init__(self, run: RunInStack) -> None:
        self._command = run
        # As long as some socket wants them, the kernel stamps packets. Otherwise each ping and
        # tcpdump has it patch that in and out of its code, and of that an emulated machine with
        # two processors may die: "Oops: int3" in __netif_receive_skb_core.
        self._stamped = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._stamped.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMP, 1)
        self.root = IPRoute()
        self.holders: dict[str, int] = {}
        self.stacks: dict[str, Any] = {}
        self.interfaces: list[tuple[str, str]] = []
        self.rdma_links: list[tuple[str, str]] = []

    def make_hosts(self, namespaces: list[str], machine_stack: list[str]) -> dict[str, int]:
        """Make the hosts; return the process id to enter each by (0: the machine's own stack)."""
        for name in namespaces:
            self.holders[name] = _start_holder(name)
            self.stacks[name] = self._in_stack(name, IPRoute)
            self._up(name, "lo")
        for name in machine_stack:
            self.holders[name] = 0
            self.stacks[name] = self.root
        return self.holders

    def make_link(
        self, ends: list[dict[str, Any]], mtu: int, neighbours: bool, delay: float, loss: float
    ) -> None:
        """Join two hosts by a veth pair; each end: host, device, mac, ipv4, ipv6.

        :param neighbours: set permanent neighbour entries, so that the first RDMA connection does
            not wait 5 s for the address resolution of ib_core
        :param delay: milliseconds, in each direction
        :param loss: per cent, in each direction
        """
        a, b = ends
        self.root.link(
            "add",
            ifname=_temporary(a),
            kind="veth",
            mtu=mtu,
            address=a["mac"],
            peer={"ifname": _temporary(b), "mtu": mtu, "address": b["mac"]},
        )
        for end in ends:
            self._place(end)
            self.interfaces.append((end["host"], end["device"]))
        for end in ends:
            self._address(end)
        for end, peer in ((a, b), (b, a)):
            if neighbours:
                self._know(end, peer)
            self._shape(end, delay, loss)
        for end in ends:
            self._wait_up(end)

    def place_wire(
        self,
        end: dict[str, Any],
        peer: dict[str, Any],
        mtu: int,
        neighbours: bool,
        delay: float,
        loss: float,
    ) -> None:
        """Give a host its end of a wire to another machine: an interface that is there already.

        See :meth:`make_link`.
        """
        (index,) = self.root.link_lookup(address=end["mac"])
        self.root.link("set", index=index, state="down")
        self.root.link("set", index=index, ifname=_temporary(end), mtu=mtu)
        self._place(end)
        self._address(end)
        if neighbours:
            self._know(end, peer)
        self._shape(end, delay, loss)
        self._wait_up(end)

    def make_rdma_links(self, links: list[dict[str, Any]]) -> None:
        """Put RDMA links on interfaces; wait until they are active and have their addresses.

        One after the other: rdma_rxe refuses a link with EPERM while another is being made in the
        same namespace. Each link: host, device, kind, name, and gids (how many GID table entries
        the interface's addresses make).
        """
        for link in links:
            add = ["rdma", "link", "add", link["name"], "type", link["kind"]]
            self._run(link["host"], *add, "netdev", link["device"])
            self.rdma_links.append((link["host"], link["name"]))
        for link in links:
            name, port = link["name"], f"{_RDMA}/{link['name']}/ports/1"
            kernel.wait(partial(_active, port), f"RDMA link {name} to be active")
            kernel.wait(
                partial(_has_gids, port, link["gids"]), f"{link['gids']} GIDs on RDMA link {name}"
            )

    def unmake(self) -> None:
        """Remove RDMA links, then links, then hosts; every removal is waited for.

        An RDMA link outlives nothing: removed after its namespace, it would be left behind.
        """
        while self.rdma_links:
            host, name = self.rdma_links.pop()
            self._run(host, "rdma", "link", "del", name)
            kernel.wait(partial(_gone, f"{_RDMA}/{name}"), f"RDMA link {name} to go")
        while self.interfaces:
            host, device = self.interfaces.pop()
            if found := self.stacks[host].link_lookup(ifname=device):
                self.stacks[host].link("del", index=found[0])
        for name, pid in self.holders.items():
            if pid:
                self.stacks[name].close()
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self.holders.clear()
        self.stacks.clear()

    def _place(self, end: dict[str, Any]) -> None:
        host, device = end["host"], end["device"]
        (index,) = self.root.link_lookup(ifname=_temporary(end))
        if pid := self.holders[host]:
            self.root.link("set", index=index, net_ns_pid=pid)
            (index,) = self.stacks[host].link_lookup(ifname=_temporary(end))
        else:
            kernel.write_sysctls({f"net/ipv6/conf/{_temporary(end)}/accept_dad": "0"})
        self.stacks[host].link("set", index=index, ifname=device)

    def _address(self, end: dict[str, Any]) -> None:
        """Give an interface its addresses and switch it on."""
        ipr = self.stacks[end["host"]]
        index = self._index(end["host"], end["device"])
        for key, family in (("ipv4", socket.AF_INET), ("ipv6", socket.AF_INET6)):
            address, prefix = end[key].split("/")
            ipr.addr(
                "add",
                index=index,
                address=address,
                prefixlen=int(prefix),
                family=family,
                flags=_IFA_F_NODAD if family == socket.AF_INET6 else 0,
            )
        ipr.link("set", index=index, state="up")

    def _know(self, end: dict[str, Any], peer: dict[str, Any]) -> None:
        """Set permanent neighbour entries for the other end."""
        for key, family in (("ipv4", socket.AF_INET), ("ipv6", socket.AF_INET6)):
            self.stacks[end["host"]].neigh(
                "replace",
                ifindex=self._index(end["host"], end["device"]),
                dst=peer[key].split("/")[0],
                lladdr=peer["mac"],
                state=_NUD_PERMANENT,
                family=family,
            )

    def _shape(self, end: dict[str, Any], delay: float, loss: float) -> None:
        """Have packets come late or not at all; nothing happens without need."""
        what = ["delay", f"{delay}ms"] if delay else []
        what += ["loss", f"{loss}%"] if loss else []
        if what:
            tc = ["tc", "qdisc", "add", "dev", end["device"], "root", "netem", *what]
            self._run(end["host"], *tc, "limit", "100000")

    def _index(self, host: str, device: str) -> int:
        (index,) = self.stacks[host].link_lookup(ifname=device)
        return int(index)

    def _up(self, host: str, device: str) -> None:
        self.stacks[host].link("set", index=self._index(host, device), state="up")

    def _wait_up(self, end: dict[str, Any]) -> None:
        host, device = end["host"], end["device"]

        def up() -> bool:
            (link,) = self.stacks[host].get_links(self._index(host, device))
            # Interfaces without a notion of a carrier never say more than "unknown".
            return link.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN")

        kernel.wait(up, f"interface {device} of host {host} to be up")

    def _in_stack(self, host: str, make: Callable[[], Any]) -> Any:
        """Call ``make`` in a host's network namespace: a netlink socket stays where it was made."""
        own = os.open("/proc/self/ns/net", os.O_RDONLY)
        other = os.open(f"/proc/{self.holders[host]}/ns/net", os.O_RDONLY)
        try:
            kernel.setns(other, kernel.CLONE_NEWNET)
            try:
                return make()
            finally:
                kernel.setns(own, kernel.CLONE_NEWNET)
        finally:
            os.close(own)
            os.close(other)

    def _run(self, host: str, *argv: str) -> None:
        try:
            self._command(self.holders[host], list(argv))
        except OSError as e:
            raise OSError(f"on host {host}: {e}") from e


def _temporary(end: dict[str, Any]) -> str:
    """A name for an interface until it is in its host: unique in the machine's own stack."""
    return "t" + str(end["mac"]).replace(":", "")


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


def _start_holder(name: str) -> int:
    """Start the process that holds a host's namespaces; return its id once they are ready."""
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
            os.write(tell, b"1")
        except BaseException as e:
            os.write(tell, str(e).encode())
            os._exit(1)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.execvp("sleep", ["sleep", "infinity"])
    os.close(tell)
    said = os.read(ready, 1000).decode()
    os.close(ready)
    if said != "1":
        raise OSError(f"cannot make host {name}: {said}")
    return pid
