"""Parameters of a socket, before it connects, and what both sides agree on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smbdirect_testbed.scenario import Environment, Host, Program

pytestmark = [pytest.mark.thorough, pytest.mark.stands_on("test_socket.py")]

_PROGRAM = Path(__file__).with_name("programs") / "socket_parameters.py"
_PORT = 5470
_SMALL_PORT = 5471
_SMALL = {
    "recv_credit_max": 16,
    "send_credit_target": 16,
    "max_recv_size": 128,
    "max_send_size": 128,
    "max_fragmented_recv_size": 200000,
    "max_read_write_size": 65536,
}
"""The least of everything, but for the frames."""
_DEFAULT_FRAME = 255 * 12288 // 2


def _text(parameters: dict[str, int]) -> str:
    return ",".join(f"{name}={value}" for name, value in parameters.items())


@pytest.fixture(scope="module")
def program(
    client: Host, server: Host, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    """A server with the module's parameters, and one whose are the least."""
    program = Program(_PROGRAM, client, server)
    logs = tmp_path_factory.mktemp("parameters")
    small = ["serve", program.address, _SMALL_PORT, "--wanted", _text(_SMALL)]
    with (
        program.serving(logs / "server.log", "serve", program.address, _PORT),
        program.serving(logs / "small.log", *small),
    ):
        yield program


def _call(program: Program, port: int, wanted: dict[str, int], *sizes: int) -> dict[str, Any]:
    options = ["--wanted", _text(wanted), "--sizes", *sizes]
    return program.do("call", program.address, port, *options)


def test_defaults(program: Program) -> None:
    result = _call(program, _PORT, {}, 1, _DEFAULT_FRAME, _DEFAULT_FRAME + 1)
    for side in ("client", "server"):
        assert result[side]["recv_credit_max"] == 255
        assert result[side]["max_send_size"] == result[side]["max_recv_size"] == 12288
        assert result[side]["max_fragmented_send_size"] == _DEFAULT_FRAME
    echoed = {"1": "echoed", f"{_DEFAULT_FRAME}": "echoed", f"{_DEFAULT_FRAME + 1}": "EMSGSIZE"}
    assert result["echoed"] == echoed


def test_accepted_sockets_inherit(program: Program) -> None:
    """What the listener asked for holds for its connections, and the smaller size for both."""
    result = _call(program, _SMALL_PORT, {}, 1, 100000, 200000, 200001)
    assert {name: result["server"][name] for name in _SMALL} == _SMALL
    assert result["client"]["max_send_size"] == result["client"]["max_recv_size"] == 128
    assert result["client"]["max_fragmented_send_size"] == 200000
    assert result["client"]["max_read_write_size"] == 65536
    assert list(result["echoed"].values()) == ["echoed", "echoed", "echoed", "EMSGSIZE"]


def test_client_asks_for_little(program: Program) -> None:
    """The server's segments shrink with the client's; its frames stay as large."""
    result = _call(program, _PORT, _SMALL | {"max_fragmented_recv_size": 300000}, 1000, 300000)
    assert result["server"]["max_send_size"] == result["server"]["max_recv_size"] == 128
    assert result["server"]["max_fragmented_send_size"] == 300000
    assert result["client"]["max_fragmented_send_size"] == _DEFAULT_FRAME
    assert list(result["echoed"].values()) == ["echoed", "echoed"]


def test_client_asks_for_much(program: Program) -> None:
    wanted = {
        "recv_credit_max": 1024,
        "send_credit_target": 1024,
        "max_fragmented_recv_size": 0xFFFFFF,
        "max_fragmented_send_size": 70000,
    }
    result = _call(program, _PORT, wanted, 70000, 70001)
    assert {name: result["client"][name] for name in wanted} == wanted
    assert result["server"]["max_fragmented_send_size"] == 0xFFFFFF
    assert list(result["echoed"].values()) == ["echoed", "EMSGSIZE"]


def test_refusals(program: Program) -> None:
    own = program.client.end_towards(program.server).ipv4.ip
    result = program.do("refusals", program.address, _PORT, "--own-address", own)
    verdicts = result.pop("out of range")
    assert len(verdicts) >= 14 * 2
    assert set(verdicts.values()) == {"EINVAL"}, verdicts
    assert result == {
        "changed": [],
        "own": "accepted",
        "too short": "EINVAL",
        "empty": "EINVAL",
        "longer, zeroes": "accepted",
        "longer, unknown": "E2BIG",
        "much longer": "E2BIG",
        "short get": 8,
        "long get": 56,
        "unknown option": "ENOPROTOOPT",
        "bound": "accepted",
        "after bind": True,
        "listening": "EINVAL",
        "connected": "EISCONN",
    }


def test_negotiation_timeout(program: Program) -> None:
    """Of 700 ms, against a server that does not accept."""
    own = program.client.end_towards(program.server).ipv4.ip
    result = program.do("unaccepted", program.address, _PORT, "--own-address", own)
    assert result["result"] == "ETIMEDOUT"
    assert 0.6 < result["seconds"] < 5


def test_keepalive(program: Program, scenario_log: Path, environment: Environment) -> None:
    """Of one second, and one more for an answer, when the link loses all packets."""
    root = ["dev", program.client.end_towards(program.server).device, "root"]
    names = {program.client.name, program.server.name}
    (link,) = (k for k in environment.spec.links if {e.host for e in k.ends} == names)
    usual = ["netem", "delay", f"{link.delay}ms", "loss", f"{link.loss}%", "limit", "100000"]
    log = scenario_log / "silence.log"
    argv = program.argv(program.client, "silence", program.address, _PORT)
    with log.open("wb") as out:
        waiting = subprocess.Popen(
            program.client.argv(argv), stdin=subprocess.PIPE, stdout=out, stderr=out
        )
        try:
            deadline = time.monotonic() + 30
            while b"connected" not in log.read_bytes() and time.monotonic() < deadline:
                time.sleep(0.1)
            program.client.run(["tc", "qdisc", "replace", *root, "netem", "loss", "100%"])
            try:
                waiting.communicate(b"\n", timeout=30)
            finally:
                # Without delay and loss there was none.
                back = ["replace", *root, *usual] if link.delay or link.loss else ["del", *root]
                program.client.run(["tc", "qdisc", *back])
        finally:
            waiting.kill()
            waiting.wait()
    assert '"result": "ETIMEDOUT"' in log.read_text()
