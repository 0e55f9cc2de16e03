"""Contexts entered in the background: used, or left without use."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from smbdirect_testbed.lib.background import Background
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


def test_a_user_gets_the_value_and_leaves_the_context() -> None:
    context = _Context()
    with Background(context.entered()) as background:
        assert context.log == []
        context.go.set()
        with background.use() as value:
            assert value == "value"
            assert context.log == ["entered"]
        assert context.log == ["entered", "left"]
    assert context.log == ["entered", "left"]


def test_it_is_left_without_use() -> None:
    context = _Context()
    context.go.set()
    # Held here, so that it is not left because nothing refers to it.
    entered = context.entered()
    with Background(entered):
        pass
    assert context.log == ["entered", "left"]


def test_a_failure_is_raised_in_the_user() -> None:
    context = _Context(ProvisionError("no"))
    context.go.set()
    with (
        Background(context.entered()) as background,
        pytest.raises(ProvisionError, match="no"),
        background.use(),
    ):
        pytest.fail("it was not entered")
    assert context.log == []


def test_a_failure_is_not_raised_without_a_user() -> None:
    context = _Context(ProvisionError("no"))
    context.go.set()
    with Background(context.entered()):
        pass
    assert context.log == []


def test_a_value_with_several_users_is_left_at_the_end() -> None:
    context = _Context()
    with Background(context.entered()) as background:
        assert background.done() is None
        context.go.set()
        assert background.value() == background.value() == background.done() == "value"
        assert context.log == ["entered"]
    assert context.log == ["entered", "left"]


def test_its_failure_is_raised_in_all_users() -> None:
    context = _Context(ProvisionError("no"))
    context.go.set()
    with Background(context.entered()) as background:
        for _ in range(2):
            with pytest.raises(ProvisionError, match="no"):
                background.value()
        assert background.done() is None


def test_one_that_waits_for_its_user() -> None:
    context = _Context()
    context.go.set()
    with Background(context.entered(), at_once=False) as background:
        assert context.log == []
        with background.use() as value:
            assert value == "value"
        assert context.log == ["entered", "left"]
