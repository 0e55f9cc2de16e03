"""What programs do with stream sockets besides sending and receiving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smbdirect_testbed.scenario import Host, Program

pytestmark = [pytest.mark.thorough, pytest.mark.stands_on("test_socket.py")]

_PROGRAM = Path(__file__).with_name("programs") / "socket_stream.py"
_PORT = 5480
_FEW_PORT = 5481
_FEW = 16


@pytest.fixture(scope="module")
def program(
    client: Host, server: Host, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    """A server with the default number of credits, and one with the least."""
    program = Program(_PROGRAM, client, server)
    logs = tmp_path_factory.mktemp("stream")
    few = ["serve", program.address, _FEW_PORT, "--credits", _FEW]
    with (
        program.serving(logs / "server.log", "serve", program.address, _PORT),
        program.serving(logs / "few.log", *few),
    ):
        yield program


def _do(program: Program, case: str, *, few: bool = False) -> dict[str, Any]:
    if few:
        return program.do("call", program.address, _FEW_PORT, case, "--credits", _FEW)
    return program.do("call", program.address, _PORT, case)


def test_thousands_of_tiny_buffers(program: Program) -> None:
    result = _do(program, "iovecs")
    assert result["received"] == result["sent"]


def test_msg_waitall(program: Program) -> None:
    """Returns with all that was asked for, or with what there was before the end."""
    result = _do(program, "waitall")
    assert result["bytes"] == 2 * (4 + 1000)
    assert result["seconds"] > 0.3
    assert result["at the end"] == 504


def test_msg_peek_msg_trunc_and_fionread(program: Program) -> None:
    assert _do(program, "peek") == {
        "arrived": True,
        "waiting": 30004,
        "peeked": True,
        "waiting after": 30004,
        "dropped": 104,
        "left": 29900,
        "same": True,
        "nothing": 0,
    }


def test_timeouts(program: Program) -> None:
    """SO_RCVTIMEO and SO_SNDTIMEO of 0.3 s."""
    result = _do(program, "timeouts")
    assert result["recv"] == result["send"] == "EAGAIN"
    assert 0.25 < result["recv seconds"] < 3
    assert 0.25 < result["send seconds"] < 3
    assert result["writable"] is False


def test_fork(program: Program) -> None:
    assert _do(program, "fork") == {"child": 0, "parent": "parent"}


def test_scm_rights(program: Program) -> None:
    assert _do(program, "rights") == {"answer": "passed on", "child": 0}


@pytest.mark.parametrize("few", [False, True], ids=["many-credits", "few-credits"])
def test_write_then_close(program: Program, *, few: bool) -> None:
    """A slow reader gets all of it, and the close did not wait for that."""
    written = _do(program, "write_close", few=few)
    assert written["close seconds"] < 1
    assert _do(program, "last_close", few=few)["seen"] == f"{written['digest']} end of stream"


@pytest.mark.parametrize("few", [False, True], ids=["many-credits", "few-credits"])
def test_both_directions_at_once(program: Program, *, few: bool) -> None:
    """Credits of both sides run out, and the streams go on when both begin to read."""
    for _ in range(3):
        assert _do(program, "duplex", few=few) == {"mine": "complete"}
