"""From the hosts and links of a spec to hosts in a machine, through the agent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from smbdirect_testbed.config.spec import EnvironmentSpec, LinkSpec, Stack
from smbdirect_testbed.machine.host import Host, HostEnd
from smbdirect_testbed.machine.machine import Machine

if TYPE_CHECKING:
    from smbdirect_testbed.agent.requests import Link, LinkEnd, LinkShape


@contextmanager
def made_hosts(
    spec: EnvironmentSpec,
    machines: Mapping[str, Machine],
    *,
    keep: bool,
    before_links: Callable[[Mapping[str, Host]], object] = lambda _: None,
    before_rdma: Callable[[], object] = lambda: None,
) -> Iterator[Mapping[str, Host]]:
    """Make a spec's hosts, links and RDMA links; on exit unmake them, unless ``keep``.

    Of a link between two machines only the ends are made, on the interfaces that the machines were
    started with.

    :param machines: with agents, by name; with fewer than the spec's machines, only what is on
        those is made
    :param before_links: is given the hosts when they have no links yet
    :param before_rdma: returns when there can be RDMA links
    :raises ProvisionError: the kernel refused something, with its reason
    """
    pids: dict[str, int] = {}
    for name, machine in machines.items():
        made = [h for h in spec.hosts if h.machine == name]
        pids |= machine.required_agent().make_hosts(
            namespaces=[h.name for h in made if h.stack is Stack.NAMESPACE],
            machine_stack=[h.name for h in made if h.stack is Stack.MACHINE],
        )
    links = [planned_link(number, link) for number, link in enumerate(spec.links)]
    hosts = {
        h.name: Host(
            name=h.name,
            role=h.role,
            machine=machines[h.machine],
            ends=tuple(planned[h.name] for planned in links if h.name in planned),
            pid=pids[h.name],
        )
        for h in spec.hosts
        if h.machine in machines
    }
    before_links(hosts)
    within: dict[str, list[Link]] = {}
    for link, planned in zip(spec.links, links, strict=True):
        ends = {host: _for_agent(host, end) for host, end in planned.items()}
        shape = _shape(link)
        on_machine = {host: spec.host(host).machine for host in planned}
        if not spec.crosses(link):
            (name,) = set(on_machine.values())
            within.setdefault(name, []).append({"ends": list(ends.values()), **shape})
            continue
        for host, end in ends.items():
            if on := machines.get(on_machine[host]):
                on.required_agent().place_machine_link(end, ends[planned[host].peer], shape)
    for name, here in within.items():
        if on := machines.get(name):
            on.required_agent().make_links(here)
    before_rdma()
    for machine in machines.values():
        _make_rdma_links([h for h in hosts.values() if h.machine is machine], machine)
    yield hosts
    for machine in machines.values():
        if not keep and not machine.death():
            machine.required_agent().unmake(len(hosts))


def _make_rdma_links(hosts: Iterable[Host], machine: Machine) -> None:
    machine.required_agent().make_rdma_links(
        [
            {
                "host": host.name,
                "device": end.device,
                "kind": end.rdma.value,
                "name": end.rdma_device,
                "gids": end.rdma.traits.gids,
                "sysctls": dict(end.rdma.traits.sysctls),
            }
            for host in hosts
            for end in host.ends
            if end.rdma and end.rdma_device
        ]
    )


def _for_agent(host: str, end: HostEnd) -> LinkEnd:
    return {
        "host": host,
        "device": end.device,
        "mac": end.mac,
        "ipv4": str(end.ipv4),
        "ipv6": str(end.ipv6),
    }


def _shape(link: LinkSpec) -> LinkShape:
    return {
        "mtu": link.mtu,
        "neighbours": link.neighbours,
        "delay": link.delay,
        "loss": link.loss,
    }


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
