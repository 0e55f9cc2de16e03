"""What the program of scenarios/test_socket_churn.py takes for a leak."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest

from smbdirect_testbed.lib import paths

PROGRAM = paths.PROJECT / "scenarios/programs/socket_churn.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("socket_churn", PROGRAM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(slab: list[int], available: list[int]) -> list[dict[str, Any]]:
    return [
        {"slabs": {"sock": n, "other": 100}, "available_kib": kib}
        for n, kib in zip(slab, available, strict=True)
    ]


FLAT = [9_000_000, 8_000_000, 8_000_000, 8_000_000, 8_000_000]


def test_flat_is_no_leak(program: ModuleType) -> None:
    assert program.leaks(blocks([100, 900, 900, 900, 900], FLAT), 20) == []


def test_steps_that_end_are_no_leak(program: ModuleType) -> None:
    assert program.leaks(blocks([100, 900, 964, 964, 1028], FLAT), 20) == []


def test_an_object_for_each_cycle_is_a_leak(program: ModuleType) -> None:
    (found,) = program.leaks(blocks([100, 130, 150, 171, 192], FLAT), 20)
    assert found == "slab sock grew by [20, 21, 21] objects in blocks of 20 cycles"


def test_memory_for_each_cycle_is_a_leak(program: ModuleType) -> None:
    available = [9_000_000, 8_900_000, 8_896_000, 8_893_000, 8_890_000]
    (found,) = program.leaks(blocks([1] * 5, available), 20)
    assert found == "available memory fell by [4000, 3000, 3000] KiB in blocks of 20 cycles"
