"""Sockets whose device or namespace goes away: their users learn of it, and nothing stays behind.

In namespaces that the program makes itself, so that the environment is left alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smbdirect_testbed.scenario import WEAK_DEVICE, Host, LoadedDriver, Program

pytestmark = [pytest.mark.thorough, pytest.mark.stands_on("test_socket.py")]

_PROGRAM = Path(__file__).with_name("programs") / "socket_ends.py"
_PROMPT = 5
"""Seconds within which a deletion must be done and be noticed."""


def _do(client: Host, server: Host, case: str, *arguments: object) -> dict[str, Any]:
    argv = Program(_PROGRAM, client, server).argv(client, case, *arguments)
    done = client.machine.run(argv, timeout=150)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_device_is_deleted(client: Host, server: Host) -> None:
    """With data in flight, a bound socket, a listener on its address and one on all."""
    result = _do(client, server, "device")
    assert result["bound"] == result["wildcard"] == "done"
    assert result["deletion seconds"] < _PROMPT
    assert result["seconds"] < _PROMPT
    assert result["near"][1] == "ENETDOWN"
    assert result["far"][1] in ("ECONNRESET", "EPIPE", "ENETDOWN")
    assert result["listener"] == "ENETDOWN"
    # Its device is another one now, where nobody listens.
    assert result["bound again"] == "ECONNREFUSED"


def test_namespace_dies_with_its_processes(client: Host, server: Host) -> None:
    """With data in flight and idle sockets; no socket survives."""
    result = _do(client, server, "namespace")
    assert result["deletion seconds"] < _PROMPT
    assert result["seconds"] < _PROMPT
    assert result["near"][1] in ("end of stream", "ECONNRESET", "ENETDOWN")
    assert result["left"] == 0
    assert result["gone seconds"] < 4 * _PROMPT


def test_namespace_is_kept_by_its_sockets(client: Host, server: Host) -> None:
    """Its name goes and its link goes: both ends are told, and the listener."""
    result = _do(client, server, "kept")
    assert result["deletion seconds"] < _PROMPT
    assert result["seconds"] < _PROMPT
    for end in ("near", "far"):
        # The link goes down before the device goes away: either may be first.
        assert result[end][1] in ("ECONNRESET", "EPIPE", "ENETDOWN")
    assert result["listener"] == "ENETDOWN"


def test_device_of_an_attempt_is_deleted(client: Host, server: Host) -> None:
    """At either end, while a connection waits to be accepted."""
    result = _do(client, server, "device_of_attempt")
    near, far = result["sdends-near"], result["sdends-far"]
    assert near[0] in ("ECONNRESET", "ECONNREFUSED")
    assert near[1] == "ENETDOWN"
    assert far[0] == "ENETDOWN"
    assert max(near[2], far[2]) < _PROMPT


def test_link_goes_down(client: Host, server: Host) -> None:
    """While listening, connecting, waiting to be accepted, with data in flight, and shortly."""
    result = _do(client, server, "down")
    error, seconds = result["connect"]
    assert error in ("ENETUNREACH", "EHOSTUNREACH", "ETIMEDOUT")
    assert seconds < 2 * _PROMPT
    error, seconds = result["waiting"]
    assert error in ("ETIMEDOUT", "ECONNRESET")
    assert seconds < 2 * _PROMPT
    for end in ("near", "far"):
        assert result[end][1] in ("ETIMEDOUT", "ECONNRESET", "EPIPE")
    assert result["seconds"] < 2 * _PROMPT
    for moment in ("listener", "listener again", "afterwards", "short"):
        assert result[moment] == "echoed", moment


def test_device_that_can_do_too_little(client: Host, server: Host, driver: LoadedDriver) -> None:
    """Without fast registration, or with too few scatter-gather entries: refused at once."""
    results = _do(client, server, "weak", driver.directory / WEAK_DEVICE)
    assert list(results) == ["frwr", "sge"]
    for lacking, result in results.items():
        assert result.pop("afterwards")[0] == "done", lacking
        for _, seconds in result.values():
            assert seconds < _PROMPT, lacking
        errors = {call: error for call, (error, _) in result.items()}
        assert errors == {
            "bind": "EPROTONOSUPPORT",
            "connect": "EPROTONOSUPPORT",
            "connect to": "ECONNREFUSED",
        }, lacking
