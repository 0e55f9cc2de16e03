"""A reader that pauses keeps its connection for as long as its peer lives, as with TCP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smbdirect_testbed.host import Host
from smbdirect_testbed.program import Program

_PROGRAM = Path(__file__).with_name("programs") / "socket_pause.py"
_PORT = 5520
_USUAL_PORT = 5521
_HASTY = 400
"""Milliseconds of silence, after which the peer is asked; half of it for an answer."""
_PAUSE = 3
"""Seconds: several times as long as a peer may be silent that was asked."""
_STOPPED = 45
"""Seconds, with the usual times."""


@pytest.fixture(scope="module")
def program(
    client: Host, server: Host, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    """A server that is quick to ask for a sign of life, and one with the usual times."""
    program = Program(_PROGRAM, client, server)
    logs = tmp_path_factory.mktemp("pause")
    hasty = ["serve", program.address, _PORT, "--keepalive", _HASTY]
    usual = ["serve", program.address, _USUAL_PORT]
    with (
        program.serving(logs / "hasty.log", *hasty),
        program.serving(logs / "usual.log", *usual),
    ):
        yield program


def _do(program: Program, case: str, *options: object) -> dict[str, Any]:
    pause = ["--keepalive", _HASTY, "--pause", _PAUSE]
    return program.do(case, program.address, _PORT, *pause, *options)


def test_paused_reader(program: Program) -> None:
    """All that was sent arrives after the pause, at either side."""
    assert _do(program, "there") == {"sent": "ok", "same": True}
    assert _do(program, "here") == {"same": True}


@pytest.mark.thorough
def test_both_pause(program: Program) -> None:
    assert _do(program, "both") == {"here": True, "there": True}


@pytest.mark.thorough
def test_close_delivers_to_a_slow_reader(program: Program) -> None:
    """That takes 40 KiB every second, and the rest after a while."""
    result = _do(program, "closed", "--pause", 1, "--rounds", 8)
    assert result == {"sent": "ok", "seen": True}


@pytest.mark.thorough
def test_stopped_process(program: Program) -> None:
    result = program.do(
        "stopped", program.address, _USUAL_PORT, "--pause", _STOPPED, timeout=_STOPPED + 90
    )
    assert result == {"same": True}
