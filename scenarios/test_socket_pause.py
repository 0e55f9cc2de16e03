"""A reader that pauses keeps its connection for as long as its peer lives, as with TCP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from smbdirect_testbed.scenario import (
    Host,
    Program,
    RdmaType,
    ServerKind,
    SmbServer,
    Transport,
    mounted,
)

pytestmark = pytest.mark.stands_on("test_socket.py")

_PROGRAM = Path(__file__).with_name("programs") / "socket_pause.py"
_PORT = 5520
_USUAL_PORT = 5521
_HASTY = 800
"""Milliseconds of silence, after which the peer is asked; half of it for an answer."""
_PAUSE = 4
"""Seconds: several times as long as a peer may be silent that was asked."""
_STOPPED = 45
_STOPPED_SMBD = 25
_COPY = (
    "head -c 16M /dev/urandom >/run/pause && cp /run/pause $0 && sync $0 && sha256sum </run/pause"
)
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
    """All that was sent arrives after the pause, at either side; two connections at a time."""
    with ThreadPoolExecutor() as executor:
        there, here = (executor.submit(_do, program, case) for case in ("there", "here"))
    assert there.result() == {"sent": "ok", "same": True}
    assert here.result() == {"same": True}


@pytest.mark.thorough
def test_both_pause(program: Program) -> None:
    assert _do(program, "both") == {"here": True, "there": True}


@pytest.mark.thorough
def test_close_delivers_to_a_slow_reader(program: Program) -> None:
    """That takes 40 KiB every three seconds, and the rest after a while."""
    result = _do(program, "closed", "--pause", 3, "--rounds", 3)
    assert result == {"sent": "ok", "seen": True}


@pytest.mark.thorough
def test_stopped_process(program: Program) -> None:
    result = program.do(
        "stopped", program.address, _USUAL_PORT, "--pause", _STOPPED, timeout=_STOPPED + 90
    )
    assert result == {"same": True}


@pytest.mark.thorough
@pytest.mark.needs(ServerKind.SMBD, RdmaType.SIW)
def test_stopped_smbd(client: Host, smbd: SmbServer, tmp_path: Path) -> None:
    """While cifs.ko writes, which spends its last credit on data; it takes 5445 for iWARP's."""
    stop = f"sleep 0.5; pkill -STOP ^smbd; sleep {_STOPPED_SMBD}; pkill -CONT ^smbd; sleep 300"
    with (
        mounted(client, smbd, Transport.SMBDIRECT) as mount,
        smbd.host.background(["sh", "-c", stop], tmp_path / "stop.log"),
    ):
        wanted = client.run(["sh", "-c", _COPY, str(mount / "pause")], timeout=120).stdout
        arrived = smbd.host.run(["sh", "-c", f"sha256sum <{smbd.share_directory}/pause"]).stdout
    assert arrived == wanted
