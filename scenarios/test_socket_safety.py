"""What users of SMB-Direct sockets must not be able to do: ``docs/security.md`` has the list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smbdirect_testbed.scenario import Host, LoadedDriver, Program

pytestmark = pytest.mark.stands_on("test_socket.py")

_PROGRAM = Path(__file__).with_name("programs") / "socket_safety.py"
_PORT = 5540
_EXTREME_PORT = 5541
_PRELOAD_PORT = 5543
_EXTREME = {
    "recv_credit_max": 16,
    "send_credit_target": 16,
    "max_recv_size": 128,
    "max_send_size": 128,
    "initiator_depth": 128,
    "responder_resources": 128,
}
"""Little of everything but registrations."""
_ROUNDS = 30


@pytest.fixture(scope="module")
def program(
    client: Host, server: Host, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    program = Program(_PROGRAM, client, server)
    logs = tmp_path_factory.mktemp("safety")
    extreme = ["serve", program.address, _EXTREME_PORT, "--wanted", json.dumps(_EXTREME)]
    with (
        program.serving(logs / "server.log", "serve", program.address, _PORT),
        program.serving(logs / "extreme.log", *extreme),
    ):
        yield program


def _do(program: Program, case: str, *options: object, port: int = _PORT) -> dict[str, Any]:
    own = ["--own", program.client.end_towards(program.server).ipv4.ip]
    return program.do(case, program.address, port, *own, *options)


def test_addresses_that_mean_any_device(program: Program) -> None:
    """Refused as what they are: no device of another network namespace is used."""
    results = _do(program, "addresses")
    assert set(results["connect"].values()) == {"ENETUNREACH"}, results
    assert set(results["bind"].values()) == {"EADDRNOTAVAIL"}, results


def test_who_may_be_the_server(program: Program) -> None:
    """The ports of SMB, by TCP and by iWARP, are not for everybody."""
    assert _do(program, "ports") == {"445": "EACCES", "5445": "EACCES", "5446": "ok"}


@pytest.mark.thorough
def test_preload(program: Program, driver: LoadedDriver) -> None:
    """Does not write where the caller may not, and keeps what was set before the exchange."""
    client = program.client
    own = client.end_towards(program.server).ipv4.ip
    argv = program.argv(client, "preload", program.address, _PRELOAD_PORT, "--own", own)
    done = client.run([str(driver.launcher), f"--ports={_PRELOAD_PORT}", "--", *argv])
    assert json.loads(done.stdout) == {
        "protocol": 257,
        "nowhere": "EFAULT",
        "no delay": 0,
        "mark": 77,
    }


@pytest.mark.thorough
def test_control_groups_programs(program: Program) -> None:
    results = _do(program, "hooks")
    if "impossible" in results:
        pytest.skip(f"this kernel has no BPF: {results['impossible']}")
    allowed = {"bind": "ok", "connect": "ok"}
    denied = {"bind": "EPERM", "connect": "EPERM"}
    assert results == {"without": allowed, "with": denied, "outside": allowed}


@pytest.mark.thorough
def test_all_memory_is_charged(program: Program) -> None:
    """That of connections with many registrations, too."""
    if program.client.machine is not program.server.machine:
        pytest.skip("one end of each connection is in the memory of another machine")
    result = _do(program, "extreme", "--wanted", json.dumps(_EXTREME), port=_EXTREME_PORT)
    assert result["taken"] < 1.25 * result["charged"] + 2048, result


@pytest.mark.thorough
def test_a_user_cannot_take_all_memory(program: Program) -> None:
    """Others, and the administrator, still connect."""
    result = _do(program, "hoard")
    # He may have a quarter of half the memory.
    total = program.client.run(["awk", "/MemTotal/ { print $2 }", "/proc/meminfo"]).stdout
    assert 0 < result["charged"] < int(total) / 2 / 4 * 1.1, result
    assert result["ends"]["ok"] > 3, result
    assert result["one more"] == "ENOBUFS", result
    assert result["root"] == "echoed", result


@pytest.mark.thorough
def test_registrations_are_given_back_at_the_end(program: Program) -> None:
    """While the connection ends: the kernel's log is watched."""
    ends = _do(program, "race", "--count", _ROUNDS)["ends"]
    assert sum(ends.values()) == 8 * _ROUNDS
    assert set(ends) <= {"ok", "ENOTCONN", "ENOENT", "EPIPE"}, ends
