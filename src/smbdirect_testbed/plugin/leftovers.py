"""What scenarios leave behind in their machines: it fails them, although nobody looked for it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest

from smbdirect_testbed.lib.errors import TestbedError

if TYPE_CHECKING:
    from smbdirect_testbed.environment.environment import Environment

_SETTLE = 2.0
"""Seconds in which servers let go of clients that ended, where there is no RDMA link."""
_INTERVAL = 0.1
_PASSIVE = {
    *("environment", "server", "client", "driver", "smbd", "smbclient", "_provenance"),
    *("_leak_detectors", "_leaks_of_a_file"),
    *("pytestconfig", "record_testsuite_property", "tmp_path_factory"),
}
"""Fixtures of the plugin, and of pytest, that make nothing in a machine."""
_MOST = 8
"""Lines of a message."""

Census = Counter[str]
"""What there is in all machines, and how often."""


class Leftovers:
    """Compares what there is before a scenario and after it.

    Fixtures that live longer than a scenario may leave what they made, and make it once more when
    they end. So what there is is compared with what there was when the same of them were set up.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._fixtures = _LongLivedFixtures()
        self._known: dict[frozenset[str], Census] = {}

    def begin(self, item: pytest.Item) -> None:
        """A scenario begins."""
        self._fixtures.learn(item)
        set_up = self._set_up()
        if self._environment.servers_start():
            return
        if set_up not in self._known and (now := self._census()) is not None:
            self._known[set_up] = now

    def judge(self) -> list[str]:
        """What a scenario left behind, a line each; what others left before is not counted."""
        if self._environment.servers_start() or (now := self._census()) is None:
            return []
        set_up = self._set_up()
        before = self._known.get(set_up, now)
        patience = self._patience()
        deadline, fewest = time.monotonic() + patience, (now - before).total()
        while (left := now - before) and time.monotonic() < deadline:
            time.sleep(_INTERVAL)
            if (again := self._census()) is None:
                return []
            now = again
            # Dozens of connections end one after the other.
            if (number := (now - before).total()) < fewest:
                deadline, fewest = time.monotonic() + patience, number
        self._known[set_up] = now
        return [f"{number} {what}" for what, number in sorted(left.items())][:_MOST]

    def _set_up(self) -> frozenset[str]:
        """What is there on purpose: fixtures, and servers, which start while scenarios run.

        While one is starting, what it has made by then is no leftover: nothing is judged.
        """
        servers = {f"server {server.kind}" for server in self._environment.servers()}
        return self._fixtures.set_up() | servers

    def _patience(self) -> float:
        ends = (end for link in self._environment.spec.links for end in link.ends)
        return max((end.rdma.traits.settle for end in ends if end.rdma), default=_SETTLE)

    def _census(self) -> Census | None:
        """None if a machine cannot tell: then it has failed in another way."""
        found: Census = Counter()
        machines = self._environment.machines
        try:
            for name, machine in machines.items():
                hosts = [h for h in self._environment.hosts.values() if h.machine is machine]
                told = machine.required_agent().take_census(
                    {host.name: host.pid for host in hosts}, self._environment.drivers[name].names
                )
                where = "" if len(machines) == 1 else f" in machine {name}"
                found.update({f"{what}{where}": number for what, number in told.items()})
        except TestbedError:
            return None
        return found


def describe_leftovers(left: Iterable[str]) -> str:
    """A message about what was left behind: the first line says it all."""
    lines = list(left)
    return "\n".join([f"left behind: {lines[0]}", *(f"             {line}" for line in lines[1:])])


class _LongLivedFixtures:
    """Fixtures that outlive a scenario."""

    def __init__(self) -> None:
        self._definitions: dict[str, pytest.FixtureDef[object]] = {}

    def learn(self, item: pytest.Item) -> None:
        """Take note of those that a scenario uses."""
        info = getattr(item, "_fixtureinfo", None)
        for found in (info.name2fixturedefs if info else {}).values():
            for definition in found:
                if definition.scope != "function" and definition.argname not in _PASSIVE:
                    name = f"{definition.baseid}::{definition.argname}"
                    self._definitions[name] = definition

    def set_up(self) -> frozenset[str]:
        """The names of those that are set up now."""
        return frozenset(
            name
            for name, definition in self._definitions.items()
            if definition.cached_result is not None
        )
