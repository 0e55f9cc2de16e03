"""The links between hosts are as the environment says: MTU, delay, loss."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from smbdirect_testbed.scenario import Environment, Host, LinkSpec

pytestmark = pytest.mark.early

_HEADERS = 20 + 8
"""Bytes of a packet that are not ping's data: IPv4 and ICMP."""
_MOST = 65535 - _HEADERS
"""Bytes of data at most."""
_SLACK = 50.0
"""Milliseconds that the quickest of some packets may need beside the link's delay, both ways."""
_SURE = 1e-6
"""How probable a wrong verdict about loss may be."""
_PATIENCE = 2000
"""Packets at most."""


@dataclass(frozen=True)
class _Pings:
    """What ping said.

    :param answered: the numbers, from 1, of the packets that were answered
    :param quickest: the shortest round trip, in milliseconds
    """

    sent: int
    answered: frozenset[int]
    quickest: float


def _ping(here: Host, there: Host, link: LinkSpec, log: Path, *options: str) -> _Pings:
    address = str(there.end_towards(here).ipv4.ip)
    # When nothing at all is answered; under emulation an answer may take a while, too.
    wait = f"{2 * link.delay / 1000 + 1:g}"
    said = here.run(["ping", "-n", "-W", wait, *options, address], check=False, timeout=60)
    with log.open("a") as file:
        file.write(f"{here.name} -> {there.name}: {said.output}\n")
    sent = re.search(r"(\d+) packets transmitted", said.stdout)
    assert sent, said.output
    answered = frozenset(map(int, re.findall(r"icmp_seq=(\d+) .*time=", said.stdout)))
    times = re.search(r"rtt min/\S+ = ([\d.]+)/", said.stdout)
    return _Pings(int(sent[1]), answered, float(times[1]) if times else math.inf)


def _links(environment: Environment) -> Iterator[tuple[LinkSpec, Host, Host]]:
    """All links, in both directions."""
    if not environment.spec.links:
        pytest.skip(f"environment {environment.spec.name} has no links")
    for link in environment.spec.links:
        a, b = (environment.hosts[end.host] for end in link.ends)
        yield link, a, b
        yield link, b, a


def test_packets_of_the_mtu_arrive_and_larger_ones_are_refused(
    environment: Environment, scenario_log: Path
) -> None:
    log = scenario_log / "ping.log"
    for link, here, there in _links(environment):
        tries = 3 if not link.loss else 20
        size = link.mtu - _HEADERS
        end = here.end_towards(there)
        addresses = here.testinfra.interface(end.device).addresses
        assert {str(end.ipv4.ip), str(end.ipv6.ip)} <= set(addresses)
        whole = ("-M", "do", "-c", str(tries), "-i", "0.01")
        assert _ping(here, there, link, log, *whole, "-s", str(size)).answered
        if size < _MOST:
            assert not _ping(here, there, link, log, *whole, "-s", str(size + 1)).answered


def test_the_round_trip_takes_twice_the_delay(environment: Environment, scenario_log: Path) -> None:
    log = scenario_log / "ping.log"
    for link, here, there in _links(environment):
        quickest = _ping(here, there, link, log, "-c", "20", "-i", "0.02").quickest
        assert 2 * link.delay <= quickest <= 2 * link.delay + _SLACK


def test_packets_are_lost_as_often_as_the_link_says(
    environment: Environment, scenario_log: Path
) -> None:
    log = scenario_log / "ping.log"
    for link, here, there in _links(environment):
        arrives = (1 - link.loss / 100) ** 2
        count = 100 if arrives == 1 else math.ceil(math.log(_SURE) / math.log(arrives))
        count = min(max(count, 100), _PATIENCE)
        pings = _ping(here, there, link, log, "-c", str(count), "-i", "0.002")
        assert pings.sent == count
        assert pings.answered
        # ping waits for the last answers no longer than two round trips: what it did not wait for
        # is not lost.
        count = max(pings.answered)
        lost = count - len(pings.answered)
        if not link.loss:
            assert lost == 0
            continue
        expected, spread = count * (1 - arrives), math.sqrt(count * arrives * (1 - arrives))
        if arrives**count <= _SURE:
            assert lost > 0
        assert abs(lost - expected) <= 5 * spread
