"""From the hosts and links of a spec to hosts in a machine, through the agent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from smbdirect_testbed.agent_client import AgentClient
from smbdirect_testbed.host import Host, HostEnd
from smbdirect_testbed.machine import Machine
from smbdirect_testbed.spec import EnvironmentSpec, LinkSpec, Stack

_GIDS_PER_END = 3
"""GID table entries of an interface with one IPv4, one IPv6 and one link-local address."""


@contextmanager
def made_hosts(
    spec: EnvironmentSpec, machine: Machine, agent: AgentClient, *, keep: bool
) -> Iterator[Mapping[str, Host]]:
    """Make a spec's hosts, links and RDMA links; on exit unmake them, unless ``keep``.

    :raises ProvisionError: the kernel refused something, with its reason
    """
    links = [planned_link(number, link) for number, link in enumerate(spec.links)]
    pids = agent.call(
        "make_hosts",
        namespaces=[h.name for h in spec.hosts if h.stack is Stack.NAMESPACE],
        machine_stack=[h.name for h in spec.hosts if h.stack is Stack.MACHINE],
    )
    for link, planned in zip(spec.links, links, strict=True):
        agent.call(
            "make_link",
            mtu=link.mtu,
            neighbours=link.neighbours,
            ends=[
                {
                    "host": host,
                    "device": end.device,
                    "mac": end.mac,
                    "ipv4": str(end.ipv4),
                    "ipv6": str(end.ipv6),
                }
                for host, end in planned.items()
            ],
        )
    yield {
        h.name: Host(
            name=h.name,
            role=h.role,
            machine=machine,
            ends=tuple(planned[h.name] for planned in links if h.name in planned),
            pid=pids[h.name],
        )
        for h in spec.hosts
    }
    if not keep and not machine.death():
        agent.call("unmake")


def make_rdma_links(hosts: Mapping[str, Host], agent: AgentClient) -> None:
    """Put the RDMA links on the hosts' interfaces; the driver for them must be loaded.

    :raises ProvisionError: the kernel refused one, or it did not become active
    """
    agent.call(
        "make_rdma_links",
        links=[
            {
                "host": host.name,
                "device": end.device,
                "kind": end.rdma.value,
                "name": end.rdma_device,
                "gids": _GIDS_PER_END,
            }
            for host in hosts.values()
            for end in host.ends
            if end.rdma
        ],
    )


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
