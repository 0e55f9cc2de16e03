"""Sockets of protocol 257 that come and go by the dozen leave nothing in the kernel's memory.

With ``SMBDIRECT_TESTBED_SLOW=1`` there are as many as a night allows.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smbdirect_testbed.scenario import Host, LoadedDriver, Program, RdmaType, ServerKind, SmbServer

pytestmark = [pytest.mark.thorough, pytest.mark.stands_on("test_socket.py")]

_SLOW = bool(os.environ.get("SMBDIRECT_TESTBED_SLOW"))
_CYCLES = 1000 if _SLOW else 60
_KILLS = 200 if _SLOW else 10
_MODULE_CYCLES = 100 if _SLOW else 8
_PROGRAM = Path(__file__).with_name("programs") / "socket_churn.py"
_MODULE = "smbdirect_socket"

_FORGETFUL = pytest.mark.known_splat(
    "smbdirect_connection_destroy_mem_pools",
    "siw forgets what is left in the send queue of a connection that was broken off",
    sometimes=True,
)

Churn = Callable[..., dict[str, Any]]


@pytest.fixture
def churn(client: Host, server: Host, scenario_log: Path, request: pytest.FixtureRequest) -> Churn:
    """Runs the program; what it found, kept with the scenario's results.

    It watches the memory of one kernel: with hosts in machines of their own, one has both ends.
    """
    if client.end_towards(server).rdma is RdmaType.SIW:
        request.applymarker(_FORGETFUL)
    program = Program(_PROGRAM, client, server)
    near = client if client.machine is server.machine else server
    hosts = ["--server", server.pid, "--client", near.pid, "--address", program.address]

    def run(action: str, count: int, *options: str, timeout: float) -> dict[str, Any]:
        seed = secrets.token_hex(4)
        arguments = [action, *hosts, "--count", count, "--seed", seed, *options]
        argv = program.argv(server, *arguments)
        done = server.machine.run(argv, timeout=timeout, check=False)
        (scenario_log / "churn.log").write_text(f"{action}, seed {seed}\n{done.output}")
        assert done.ok, done.output
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return run


def test_connections_come_and_go(churn: Churn) -> None:
    """Ended in every way: memory is flat, and all sockets go away."""
    result = churn("cycles", _CYCLES, timeout=120 + 3 * _CYCLES)
    assert result["cycles"] == _CYCLES
    assert result["leaks"] == []


def test_kill_either_side(churn: Churn) -> None:
    """At any moment: the other side notices, and the next connection works."""
    result = churn("kills", _KILLS, timeout=120 + 5 * _KILLS)
    assert sum(result["kills"].values()) == _KILLS
    assert result["noticed_seconds"]


def test_memory_has_a_limit(churn: Churn) -> None:
    """One user cannot take it all: not even with connections that nobody accepts."""
    result = churn("hoard", 300, timeout=120)
    assert os.strerror(errno.ENOBUFS) in result["results"], result
    assert result["least_kib"] > 0.4 * result["total_kib"], result


@pytest.mark.needs(ServerKind.SMBD)
def test_load_and_unload(churn: Churn, driver: LoadedDriver, smbd: SmbServer) -> None:
    """With a connection each time: memory is flat."""
    file = str(driver.directory / f"{_MODULE}.ko")
    with smbd.stopped():
        result = churn(
            "modules", _MODULE_CYCLES, "--module", file, timeout=120 + 5 * _MODULE_CYCLES
        )
        driver.check()
    assert result["cycles"] == _MODULE_CYCLES
    assert result["leaks"] == []
