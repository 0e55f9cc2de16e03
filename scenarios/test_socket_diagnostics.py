"""What an administrator sees of SMB-Direct sockets: /proc/net/smbdirect, tracepoints, silence."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from smbdirect_testbed.scenario import Host, Program, wait_until

pytestmark = [pytest.mark.thorough, pytest.mark.stands_on("test_socket.py")]

_PROGRAMS = Path(__file__).with_name("programs")
_PORT = 5485
_NOBODYS_PORT = 5489
_TRACING = Path("/sys/kernel/tracing")
_EVENTS = _TRACING / "events/smbdirect_socket/enable"


def _sockets(host: Host) -> list[dict[str, str]]:
    """The sockets of a host's network namespace, by the names in the first line."""
    lines = host.run(["cat", "/proc/net/smbdirect"]).stdout.splitlines()
    names = lines[0].split()
    return [dict(zip(names, line.split(), strict=True)) for line in lines[1:]]


@pytest.fixture(scope="module")
def stream(
    client: Host, server: Host, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    program = Program(_PROGRAMS / "socket_stream.py", client, server)
    log = tmp_path_factory.mktemp("diagnostics") / "server.log"
    with program.serving(log, "serve", program.address, _PORT):
        yield program


def test_proc_net_smbdirect(stream: Program, scenario_log: Path) -> None:
    """A listener, and a connection whose client cannot get rid of its data, from both ends."""
    own = f"{stream.client.end_towards(stream.server).ipv4.ip}"
    listening = f"{stream.address}:{_PORT}"
    argv = stream.argv(stream.client, "call", stream.address, _PORT, "stuck")
    with (scenario_log / "client.log").open("wb") as log:
        waiting = subprocess.Popen(
            stream.client.argv(argv), stdin=subprocess.PIPE, stdout=log, stderr=log
        )
        try:

            def stuck() -> bool:
                sockets = _sockets(stream.client)
                return any(s["peer"] == listening and int(s["tx_queue"]) for s in sockets)

            wait_until(stuck, "the client's data to queue up", timeout=30)
            near = [s for s in _sockets(stream.client) if s["peer"] == listening]
            far = [s for s in _sockets(stream.server) if s["local"] == listening]
        finally:
            waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert len(near) == 1
    assert near[0]["state"] == "CONNECTED"
    assert near[0]["local"].startswith(f"{own}:")
    assert near[0]["device"] == stream.client.end_towards(stream.server).rdma_device
    assert near[0]["uid"] == "0"
    assert near[0]["max_frame"] == str(255 * 12288 // 2)
    assert int(near[0]["inode"]) > 0
    assert [s["state"] for s in far] == ["LISTEN", "CONNECTED"]
    assert far[1]["peer"] == near[0]["local"]
    assert int(far[1]["rx_queue"]) > 0
    # Each namespace sees its own.
    assert not [s for s in _sockets(stream.client) if s["local"] == listening]


def test_tracepoints(stream: Program) -> None:
    """Every step of a connection leaves its event."""
    machine = stream.client.machine
    if stream.server.machine is not machine:
        pytest.skip("the events of two machines are in two traces")
    mount = f"mountpoint -q {_TRACING} || mount -t tracefs tracefs {_TRACING}"
    machine.run(["sh", "-c", f"{mount} && echo > {_TRACING}/trace && echo 1 > {_EVENTS}"])
    try:
        stream.do("call", stream.address, _PORT, "fork")
        rdma = Program(_PROGRAMS / "socket_rdma.py", stream.client, stream.server)
        rdma.do("events", stream.address, _PORT)
        echo = Program(_PROGRAMS / "frame_echo.py", stream.client, stream.server)
        echo.do("connect", stream.address, _NOBODYS_PORT)
    finally:
        machine.run(["sh", "-c", f"echo 0 > {_EVENTS}"])
    trace = machine.run(["cat", f"{_TRACING}/trace"]).stdout
    for event in ("connect", "connected", "accept", "send", "receive", "rdma", "disconnect"):
        assert re.search(rf"smbdirect_socket_{event}: inode=\d+ ", trace), trace[:3000]
    assert re.search(rf"accept: .* local_port={_PORT} .* recv_credit_max=255 ", trace)
    assert re.search(r"smbdirect_socket_send: .* bytes=9 error=0", trace)  # a frame of "child"
    assert re.search(r"smbdirect_socket_rdma: .* operation=register bytes=4096 error=0", trace)
    refused = rf"smbdirect_socket_error: .* peer_port={_NOBODYS_PORT} bytes=0 error=-111"
    assert re.search(refused, trace)


def test_no_noise(stream: Program) -> None:
    """Normal work leaves nothing in the kernel's log."""
    machine = stream.client.machine
    before = machine.run(["dmesg"]).stdout.splitlines()
    for case in ("iovecs", "waitall", "peek", "fork"):
        stream.do("call", stream.address, _PORT, case)
    after = machine.run(["dmesg"]).stdout.splitlines()
    new = after[len(before) :] if after[: len(before)] == before else after
    # Markers of scenarios are the testbed's own.
    assert [line for line in new if "smbdirect" in line and "testbed" not in line] == []


def test_interfaces(stream: Program) -> None:
    """Those with an RDMA link, and what has none."""
    program = Program(_PROGRAMS / "socket_parameters.py", stream.client, stream.server)
    seen = program.do("interfaces", stream.address, _PORT)
    device = stream.client.end_towards(stream.server).device
    assert seen[device] is True
    assert seen["lo"] is False
    assert seen["nobody0"] == "ENODEV"
