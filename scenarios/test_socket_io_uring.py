"""Sockets by io_uring: accept, connect, send, receive, over a connection of a host with itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from smbdirect_testbed.scenario import Host, Program

pytestmark = [pytest.mark.thorough, pytest.mark.stands_on("test_socket.py")]

_PROGRAM = Path(__file__).with_name("programs") / "socket_io_uring.py"


def test_io_uring(client: Host, server: Host) -> None:
    program = Program(_PROGRAM, client, server)
    result = program.do(client.end_towards(server).ipv4.ip, "--size", 300000)
    if "no io_uring" in result:
        pytest.skip(f"the machine's kernel has no io_uring: {result['no io_uring']}")
    assert result == {
        "connect": 0,
        "protocol": 257,
        "sent": 300000,
        "first": True,
        "received": 300000,
        "same": True,
        "at the end": 0,
        "refused": "ECONNREFUSED",
    }
