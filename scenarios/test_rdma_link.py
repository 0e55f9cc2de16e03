"""The RDMA links under everything else: connections, data, and counters that move."""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path

import pytest

from smbdirect_testbed.scenario import Environment, Host, RdmaType, wait_until

pytestmark = [pytest.mark.early, pytest.mark.stands_on("test_links.py")]

_PINGS = 10
_MESSAGES = 200
_MESSAGE_SIZE = 65536


def _rdma_hosts(environment: Environment) -> list[Host]:
    return [h for h in environment.hosts.values() if any(e.rdma for e in h.ends)]


def _counters(host: Host) -> dict[str, int]:
    """The port counters of a host's first RDMA link, as its driver counts."""
    shown = host.run(["rdma", "-j", "statistic", "show", "link", f"{host.rdma_device}/1"]).stdout
    (counters,) = json.loads(shown)
    return {key: value for key, value in counters.items() if isinstance(value, int)}


def test_links_are_active(environment: Environment) -> None:
    hosts = _rdma_hosts(environment)
    if not hosts:
        pytest.skip(f"environment {environment.spec.name} has no RDMA link")
    for host in hosts:
        links = json.loads(host.run(["rdma", "-j", "link", "show"]).stdout)
        state = {link["ifname"]: link for link in links}
        for end in host.ends:
            if end.rdma:
                assert end.rdma_device
                assert state[end.rdma_device]["state"] == "ACTIVE"
                assert state[end.rdma_device]["physical_state"] == "LINK_UP"


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("back", [False, True], ids=["to-server", "to-client"])
def test_rping(client: Host, server: Host, scenario_log: Path, *, ipv6: bool, back: bool) -> None:
    """rping connects by the connection manager and validates data read and written by RDMA."""
    here, there = (server, client) if back else (client, server)
    end = there.end_towards(here)
    address = str(end.ipv6.ip if ipv6 else end.ipv4.ip)
    log = scenario_log / "rping-server.log"
    listen = ["rping", "-s", "-a", address, "-C", str(_PINGS), "-V", "-v"]
    with there.background(listen, log) as listener:
        _wait_for_listener(there, address, 7174)
        call = ["rping", "-c", "-a", address, "-C", str(_PINGS), "-V", "-v"]
        called = here.run(call, timeout=40)
        (scenario_log / "rping-client.log").write_text(called.output)
        listener.wait(20)
    assert called.output.count("ping data: rdma-ping-") == _PINGS
    assert log.read_text().count("server ping data: rdma-ping-") == _PINGS


@pytest.mark.needs(RdmaType.RXE)
def test_perftest_moves_the_port_counters(client: Host, server: Host, scenario_log: Path) -> None:
    """A run of ib_send_bw by connection manager, and the packets that it must have taken."""
    address = str(server.end_towards(client).ipv4.ip)
    common = ["--rdma_cm", f"--size={_MESSAGE_SIZE}", f"--iters={_MESSAGES}", "--CPU-freq"]
    before = {host.name: _counters(host) for host in (client, server)}
    log = scenario_log / "ib_send_bw-server.log"
    listen = ["ib_send_bw", f"--ib-dev={server.rdma_device}", *common]
    with server.background(listen, log) as listener:
        _wait_for_listener(server, "0.0.0.0", 18515)
        ran = client.run(
            ["ib_send_bw", f"--ib-dev={client.rdma_device}", *common, address], timeout=60
        )
        (scenario_log / "ib_send_bw-client.log").write_text(ran.output)
        listener.wait(20)
    # The rates beside it are 0 where /proc/cpuinfo has no frequency, as in User Mode Linux.
    assert re.search(rf"^ *{_MESSAGE_SIZE} +{_MESSAGES} ", ran.stdout, re.M), ran.stdout
    after = {host.name: _counters(host) for host in (client, server)}
    # rxe sends at most 4096 bytes a packet.
    packets = _MESSAGES * _MESSAGE_SIZE // 4096
    assert after[client.name]["sent_pkts"] - before[client.name]["sent_pkts"] >= packets
    assert after[server.name]["rcvd_pkts"] - before[server.name]["rcvd_pkts"] >= packets


def _wait_for_listener(host: Host, address: str, port: int) -> None:
    wanted = {f"{address}:{port}", f"[{address}]:{port}"}
    if ipaddress.ip_address(address).is_unspecified:
        wanted |= {f"[::]:{port}", f":::{port}"}

    seen = 0

    def listens() -> bool:
        nonlocal seen
        ids = host.run(["rdma", "resource", "show", "cm_id"]).stdout.splitlines()
        # One that is bound already refuses connections until it listens; and that is its state
        # before the device's connection manager knows of it (rdma_listen() in cma.c). A moment
        # later it does.
        listening = [line for line in ids if "state LISTEN" in line]
        found = any(f"src-addr {a} " in line for a in wanted for line in listening)
        seen = seen + 1 if found else 0
        return seen > 1

    wait_until(listens, f"a listener on {address}, RDMA port {port}", timeout=20, interval=0.2)
