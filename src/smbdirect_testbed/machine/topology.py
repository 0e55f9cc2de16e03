"""From the hosts and links of a spec to hosts in a machine, through the agent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from smbdirect_testbed.config.spec import EnvironmentSpec, LinkSpec, RdmaType, Stack
from smbdirect_testbed.machine.agent_client import AgentClient
from smbdirect_testbed.machine.host import Host, HostEnd
from smbdirect_testbed.machine.machine import Machine

_UNMAKE_TIMEOUT = 90.0
_GIDS = {RdmaType.RXE: 3, RdmaType.SIW: 1}
"""GID table entries of an interface with one IPv4, one IPv6 and one link-local address; iWARP has
one for the interface."""


@dataclass(frozen=True)
class Place:
    """A machine that hosts are made on, through its agent."""

    machine: Machine
    agent: AgentClient


@contextmanager
def made_hosts(
    spec: EnvironmentSpec,
    places: Mapping[str, Place],
    *,
    keep: bool,
    before_links: Callable[[Mapping[str, Host]], object] = lambda _: None,
    before_rdma: Callable[[], object] = lambda: None,
) -> Iterator[Mapping[str, Host]]:
    """Make a spec's hosts, links and RDMA links; on exit unmake them, unless ``keep``.

    Of a link between two machines only the ends are made, on the interfaces that the machines were
    started with.

    :param places: by the machine's name; with fewer than the spec's machines, only what is on
        those is made
    :param before_links: is given the hosts when they have no links yet
    :param before_rdma: returns when there can be RDMA links
    :raises ProvisionError: the kernel refused something, with its reason
    """
    pids: dict[str, int] = {}
    for name, place in places.items():
        made = [h for h in spec.hosts if h.machine == name]
        pids |= place.agent.call(
            "make_hosts",
            namespaces=[h.name for h in made if h.stack is Stack.NAMESPACE],
            machine_stack=[h.name for h in made if h.stack is Stack.MACHINE],
        )
    links = [planned_link(number, link) for number, link in enumerate(spec.links)]
    hosts = {
        h.name: Host(
            name=h.name,
            role=h.role,
            machine=places[h.machine].machine,
            ends=tuple(planned[h.name] for planned in links if h.name in planned),
            pid=pids[h.name],
        )
        for h in spec.hosts
        if h.machine in places
    }
    before_links(hosts)
    within: dict[str, list[dict[str, Any]]] = {}
    for link, planned in zip(spec.links, links, strict=True):
        ends = {host: _for_agent(host, end) for host, end in planned.items()}
        common = {"mtu": link.mtu, "neighbours": link.neighbours, **_shape(link)}
        machines = {host: spec.host(host).machine for host in planned}
        if not spec.crosses(link):
            (name,) = set(machines.values())
            within.setdefault(name, []).append({"ends": list(ends.values()), **common})
            continue
        for host, end in ends.items():
            if on := places.get(machines[host]):
                peer = ends[planned[host].peer]
                on.agent.call("place_wire", end=end, peer=peer, **common)
    for name, here in within.items():
        if on := places.get(name):
            on.agent.call("make_links", links=here)
    before_rdma()
    for name, place in places.items():
        _make_rdma_links([h for h in hosts.values() if spec.host(h.name).machine == name], place)
    yield hosts
    for place in places.values():
        if not keep and not place.machine.death():
            # An emulated machine takes seconds for one when there are dozens.
            place.agent.call("unmake", timeout=_UNMAKE_TIMEOUT + 5 * len(hosts))


def _make_rdma_links(hosts: Iterable[Host], place: Place) -> None:
    place.agent.call(
        "make_rdma_links",
        links=[
            {
                "host": host.name,
                "device": end.device,
                "kind": end.rdma.value,
                "name": end.rdma_device,
                "gids": _GIDS[end.rdma],
            }
            for host in hosts
            for end in host.ends
            if end.rdma
        ],
    )


def _for_agent(host: str, end: HostEnd) -> dict[str, str]:
    return {
        "host": host,
        "device": end.device,
        "mac": end.mac,
        "ipv4": str(end.ipv4),
        "ipv6": str(end.ipv6),
    }


def _shape(link: LinkSpec) -> dict[str, float]:
    return {"delay": link.delay, "loss": link.loss}


def planned_link(number: int, link: LinkSpec) -> dict[str, HostEnd]:
    """Names and addresses of a link's ends, by host: the same at every start.

    :param number: the link's place in its environment
    """
    a, b = link.ends
    return {
        end.host: HostEnd(
            device=f"smb{number}",
            mac=f"02:53:4d:42:{number:02x}:{side:02x}",
            ipv4=end.ipv4,
            ipv6=end.ipv6,
            rdma=end.rdma,
            rdma_device=f"{end.rdma}_{end.host}{number}" if end.rdma else None,
            peer=peer.host,
        )
        for side, (end, peer) in enumerate(((a, b), (b, a)))
    }
