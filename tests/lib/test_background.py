"""Contexts entered in the background: awaited, or left by nobody's coming."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from smbdirect_testbed.lib.background import Early
from smbdirect_testbed.lib.errors import ProvisionError


class _Context:
    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.go = threading.Event()
        self.log: list[str] = []

    @contextmanager
    def entered(self) -> Iterator[str]:
        assert self.go.wait(10)
        if self.failure:
            raise self.failure
        self.log.append("entered")
        try:
            yield "value"
        finally:
            self.log.append("left")


def test_whoever_comes_gets_it_and_leaves_it() -> None:
    context = _Context()
    with Early(context.entered()) as early:
        assert context.log == []
        context.go.set()
        with early.come() as value:
            assert value == "value"
            assert context.log == ["entered"]
        assert context.log == ["entered", "left"]
    assert context.log == ["entered", "left"]


def test_it_is_left_when_nobody_comes() -> None:
    context = _Context()
    context.go.set()
    # Held here, so that it is not left for want of anyone who knows of it.
    entered = context.entered()
    with Early(entered):
        pass
    assert context.log == ["entered", "left"]


def test_a_failure_is_told_to_whoever_comes() -> None:
    context = _Context(ProvisionError("no"))
    context.go.set()
    with (
        Early(context.entered()) as early,
        pytest.raises(ProvisionError, match="no"),
        early.come(),
    ):
        pytest.fail("it was not entered")
    assert context.log == []


def test_a_failure_is_nothing_to_those_who_do_not_come() -> None:
    context = _Context(ProvisionError("no"))
    context.go.set()
    with Early(context.entered()):
        pass
    assert context.log == []


def test_what_several_ask_for_is_left_at_the_end() -> None:
    context = _Context()
    with Early(context.entered()) as early:
        assert early.done() is None
        context.go.set()
        assert early.value() == early.value() == early.done() == "value"
        assert context.log == ["entered"]
    assert context.log == ["entered", "left"]


def test_its_failure_is_told_to_all_who_ask() -> None:
    context = _Context(ProvisionError("no"))
    context.go.set()
    with Early(context.entered()) as early:
        for _ in range(2):
            with pytest.raises(ProvisionError, match="no"):
                early.value()
        assert early.done() is None


def test_one_that_waits_for_somebody() -> None:
    context = _Context()
    context.go.set()
    with Early(context.entered(), at_once=False) as early:
        assert context.log == []
        with early.come() as value:
            assert value == "value"
        assert context.log == ["entered", "left"]
