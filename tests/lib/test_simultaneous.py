"""Contexts entered at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from smbdirect_testbed.lib.simultaneous import Entering, enter_together
from smbdirect_testbed.lib.wait import wait_until


class Journal:
    """Contexts that note what happens to them."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def context(self, name: str, do: Callable[[], object]) -> Iterator[str]:
        try:
            do()
            self.notes.append(f"{name} in")
            yield name.upper()
        finally:
            self.notes.append(f"{name} out")


@pytest.fixture
def journal() -> Journal:
    return Journal()


def test_they_wait_at_the_same_time(journal: Journal) -> None:
    barrier = threading.Barrier(2, timeout=5)
    with ExitStack() as stack:
        contexts = {name: journal.context(name, barrier.wait) for name in ("a", "b")}
        assert enter_together(stack, contexts) == {"a": "A", "b": "B"}
        assert sorted(journal.notes) == ["a in", "b in"]
    assert sorted(journal.notes[2:]) == ["a out", "b out"]


def test_one_alone_is_entered_here(journal: Journal) -> None:
    found: list[threading.Thread] = []
    with ExitStack() as stack:
        alone = journal.context("a", lambda: found.append(threading.current_thread()))
        assert enter_together(stack, {"a": alone}) == {"a": "A"}
    assert found == [threading.main_thread()]


def test_one_that_fails_takes_the_others_along(journal: Journal) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), ExitStack() as stack:
        enter_together(
            stack,
            {"a": journal.context("a", fail), "b": journal.context("b", lambda: time.sleep(0.2))},
        )
    assert sorted(journal.notes) == ["a out", "b in", "b out"]


@pytest.mark.parametrize("times", [1, 2])
def test_interrupts_reach_all_of_them_once(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    waiting, cleaning = (threading.Barrier(3, timeout=5) for _ in range(2))
    left = [waiting.wait, cleaning.wait][:times]

    def work() -> None:
        try:
            waiting.wait()
            _sleep(10)
        finally:
            if times == 2:
                cleaning.wait()
            # A second interrupt would end this.
            _sleep(0.3)
            journal.notes.append("cleaned up")

    def join(thread: threading.Thread, timeout: float | None = None) -> None:
        if left:
            left.pop(0)()
            raise KeyboardInterrupt
        original(thread, timeout)

    original = threading.Thread.join
    monkeypatch.setattr(threading.Thread, "join", join)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ExitStack() as stack:
        enter_together(stack, {name: journal.context(name, work) for name in ("a", "b")})
    assert time.monotonic() - begun < 5
    assert sorted(journal.notes) == ["a out", "b out", "cleaned up", "cleaned up"]


def test_an_interrupt_while_they_are_started(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        """It begins, but not before the interrupt."""
        if isinstance(thread, threading.Timer):
            original(thread)
            return
        threading.Timer(0.2, original, [thread]).start()
        raise KeyboardInterrupt

    original = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    begun = time.monotonic()
    contexts = {name: journal.context(name, lambda: _sleep(10)) for name in ("a", "b")}
    with pytest.raises(KeyboardInterrupt), ExitStack() as stack:
        enter_together(stack, contexts)
    assert journal.notes == ["a out"]
    assert time.monotonic() - begun < 5


def _sleep(seconds: float) -> None:
    """Sleep as those do that wait for something: they look whether they are called off."""
    deadline = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= deadline, "time to pass", timeout=2 * seconds)


def test_an_interrupt_of_one_that_starts_others_reaches_these(journal: Journal) -> None:
    """As of an environment in the background that starts its machines."""
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        _sleep(20)

    @contextmanager
    def environment() -> Iterator[None]:
        with ExitStack() as stack:
            enter_together(stack, {name: journal.context(name, wait) for name in ("a", "b")})
            yield

    # Held here: one that nobody knows any more would be left for that.
    entering = Entering(environment())
    entering.launch()
    assert begun.wait(5)
    entering.interrupt()
    entering.join(5)
    assert not entering.is_alive()
    assert not entering.entered
    with pytest.raises(KeyboardInterrupt):
        entering.outcome()
    assert sorted(journal.notes) == ["a out", "b out"]
