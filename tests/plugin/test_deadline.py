"""How long scenarios may take, and what a hanging machine is waiting for."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from smbdirect_testbed.plugin.deadline import Deadlines, Watchdog
from smbdirect_testbed.plugin.hang import summary


def _item(id: str, *fixtures: str, deadline: float | None = None) -> Any:
    marker = SimpleNamespace(args=(deadline,)) if deadline else None
    return SimpleNamespace(nodeid=id, fixturenames=fixtures, get_closest_marker=lambda name: marker)


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))


def test_what_is_usual_counts() -> None:
    deadlines = Deadlines({"quick": 0.5, "slow": 40.0})
    quick, slow = deadlines.of(_item("quick")), deadlines.of(_item("slow"))
    assert 10 < quick < 20
    assert 200 < slow < 300
    assert quick < deadlines.of(_item("new")) < deadlines.of(_item("new", "torture"))
    assert deadlines.of(_item("slow", deadline=7)) == 7


def test_a_slow_computer_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = Deadlines({"a": 1.0, "b": 2.0, "c": 3.0})
    before = deadlines.of(_item("a"))
    for id in ("a", "b", "c"):
        deadlines.took(id, 10.0)
    assert deadlines.of(_item("a")) == 5 * before
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert deadlines.of(_item("a")) > 20 * before


def test_a_quick_computer_has_no_less() -> None:
    deadlines = Deadlines({"a": 10.0})
    before = deadlines.of(_item("a"))
    for _ in range(5):
        deadlines.took("a", 0.1)
    assert deadlines.of(_item("a")) == before


def test_only_what_is_late_is_told() -> None:
    told: list[tuple[str, float]] = []
    late = threading.Event()

    def tell(id: str, seconds: float) -> None:
        told.append((id, seconds))
        late.set()

    with Watchdog(tell) as watchdog:
        watchdog.begin("in time", 60)
        watchdog.end()
        watchdog.begin("late", 0.05)
        assert late.wait(5)
        watchdog.end()
        watchdog.begin("another", 60)
    assert told == [("late", 0.05)]


def test_a_hanging_machine_in_a_few_lines() -> None:
    text = """\
==== machine machine
task smbd 211 S
[<0>] ep_poll+0x37f/0x3c0
[<0>] do_epoll_wait+0xb7/0xe0
[<0>] __x64_sys_epoll_wait+0x60/0x100
task mount.cifs 340 D
[<0>] wait_for_completion+0x8a/0x150
[<0>] smbdirect_connection_destroy_sync+0x20/0x90
[<0>] cifs_put_tcp_session+0x10/0x20
task echo 1 S
==== sockets of host server
it does not answer: run: the agent in machine machine did not answer in 6 s
"""
    assert summary(text) == [
        "mount.cifs[340] cannot be interrupted in smbdirect_connection_destroy_sync",
        "smbd[211] in __x64_sys_epoll_wait",
        "echo[1]",
        "it does not answer: run: the agent in machine machine did not answer in 6 s",
    ]
