"""Allocations fail, each in turn: the caller gets an error that says so, and nothing is lost.

What the kernel says about itself meanwhile fails the scenario, and so does what it leaks. For
kernels with fault injection: ``uml-rxe-debug``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from smbdirect_testbed.scenario import Environment, Host, Machine, Program

pytestmark = pytest.mark.usefixtures("leaks_looked_for")

_PROGRAM = Path(__file__).with_name("programs") / "socket_failslab.py"
_PORT = 5490
_DEBUG = PurePosixPath("/sys/kernel/debug")
_SETTINGS = {
    # What may wait for memory fails, too.
    "failslab/ignore-gfp-wait": "N",
    "fail_page_alloc/ignore-gfp-wait": "N",
    "fail_page_alloc/min-order": "0",
    # A line for each is enough.
    "failslab/verbose": "1",
    "fail_page_alloc/verbose": "1",
}
_PROPER = {"ok", "ENOMEM", "ENOBUFS"}
"""What may come of a call without memory; "ok" where it does without, or asks again."""


def _set(machine: Machine, settings: dict[str, str]) -> None:
    script = "".join(f"echo {value} >{_DEBUG / name}\n" for name, value in settings.items())
    machine.run(["sh", "-ec", script])


@pytest.fixture(scope="module")
def fault_injection(environment: Environment) -> Iterator[None]:
    """Allocations can be made to fail, on all machines."""
    with ExitStack() as stack:
        for machine in environment.machines.values():
            names = " ".join(str(_DEBUG / name) for name in _SETTINGS)
            said = machine.run(["sh", "-c", f"cat {names}"], check=False)
            if not said.ok:
                pytest.skip("the kernel cannot let allocations fail: use uml-rxe-debug")
            before = dict(zip(_SETTINGS, said.stdout.split(), strict=True))
            stack.callback(_set, machine, before)
            _set(machine, _SETTINGS)
        yield


@pytest.fixture(scope="module")
def program(client: Host, server: Host, fault_injection: None) -> Program:
    return Program(_PROGRAM, client, server)


@pytest.fixture
def served(program: Program, scenario_log: Path) -> Iterator[Program]:
    log = scenario_log / "server.log"
    with program.serving(log, "serve", program.address, _PORT):
        yield program


def _check(found: dict[str, Any], least: int = 1) -> None:
    assert found["wrong"] == []
    assert found["at_end"] == "ok"
    assert set(found["results"]) <= _PROPER, found
    assert found["allocations"] >= least, "allocations did not fail at all"
    assert found["results"].get("ENOMEM", 0) + found["results"].get("ENOBUFS", 0) >= least, found


@pytest.mark.parametrize("action", ["connect", "send", "register"])
def test_client(served: Program, action: str) -> None:
    _check(served.do(action, served.address, _PORT, timeout=300))


def test_receiving_allocates_nothing_that_is_missed(served: Program) -> None:
    found = served.do("recv", served.address, _PORT, timeout=300)
    _check(found, least=0)
    assert found["lost"] == 0


@pytest.mark.parametrize("what", ["read", "write"])
def test_transfer(served: Program, what: str) -> None:
    _check(served.do("transfer", served.address, _PORT, "--what", what, timeout=300))


def test_accept(program: Program, scenario_log: Path) -> None:
    log = scenario_log / "server.log"
    with program.serving(log, "serve-accept", program.address, _PORT):
        program.do("accept", program.address, _PORT, timeout=300)
    found = json.loads(log.read_text().splitlines()[-1])
    _check(found)
