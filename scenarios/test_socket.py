"""Sockets of protocol 257, as a program sees them: data, and how things end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smbdirect_testbed.scenario import Host, ProvisionError, Transport, Wire, wait_until

pytestmark = pytest.mark.stands_on("test_rdma_link.py")

_SIZES = [1, 1024, 65536, 1048576]
_COUNT = 4
_STYLES = ["blocking", "epoll"]
_PORTS = {"blocking": 5450, "epoll": 5451, "hangup": 5452}
_NOBODYS_PORT = 5459
_HANG_UP_AFTER = 3 << 20
_FEW_MESSAGES = 100
"""What the kernel keeps for later is there after these."""
_MESSAGES = 1500
_LEAKED = 256 * _MESSAGES
"""Bytes: half of what is gone if 256 are lost with each message, and with each answer."""
_ADDRESS_TIMEOUT = 5
"""Seconds that the kernel's connection manager gives the resolution of an address."""


class EchoServers:
    """Echo servers of every style on all addresses, and their clients."""

    def __init__(self, client: Host, server: Host) -> None:
        self.end = server.end_towards(client)
        self._client = client
        # Client and server may be on two machines, which call the directory the same.
        for shared in (client.machine.shared, server.machine.shared):
            program = shared.here / "frame_echo.py"
            shutil.copy(Path(__file__).with_name("programs") / program.name, program)
        self._program = ["python3", "-I", str(shared.path_there(program))]

    def do(self, action: str, port: int, *options: object, address: str = "") -> dict[str, Any]:
        """Run a client of the server's IPv4 address, or of another; return what it found out."""
        arguments = (action, address or self.end.ipv4.ip, port, *options)
        done = self._client.run([*self._program, *map(str, arguments)], timeout=60)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def serve(self) -> list[str]:
        """The command that runs all servers."""
        listen = [
            f"{address},{port},{style}"
            for style, port in _PORTS.items()
            for address in (self.end.ipv4.ip, self.end.ipv6.ip)
        ]
        return [*self._program, "serve", *listen]


@pytest.fixture(scope="module")
def echo(
    client: Host, server: Host, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EchoServers]:
    servers = EchoServers(client, server)
    log = tmp_path_factory.mktemp("echo") / "server.log"
    with server.background(servers.serve(), log) as running:

        def listening() -> bool:
            if running.poll() is not None:
                raise ProvisionError("the echo server ended", detail=log.read_text())
            return "listening" in log.read_text()

        wait_until(listening, "the echo server to listen", timeout=30)
        yield servers


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("style", _STYLES)
def test_echo(echo: EchoServers, wire: Wire, style: str, *, ipv6: bool) -> None:
    """Frames of all sizes come back as they were, and by RDMA alone."""
    address = str(echo.end.ipv6.ip if ipv6 else echo.end.ipv4.ip)
    options = ["--style", style, "--count", _COUNT, "--sizes", *_SIZES]
    result = echo.do("call", _PORTS[style], *options, address=address)
    assert result["protocol"] == 257
    assert list(result["sizes"]) == [str(size) for size in _SIZES]
    for size, seen in result["sizes"].items():
        assert seen["lengths"] == [int(size)] * _COUNT
        assert seen["received"] == seen["sent"]
        assert size == "1" or len(set(seen["sent"])) == _COUNT
    wire.expect(Transport.SMBDIRECT)


def test_messages_leave_no_memory_behind(
    echo: EchoServers, client: Host, server: Host, scenario_log: Path
) -> None:
    """Thousands of small messages, and the kernel has no more memory in use."""
    machines = {client.machine, server.machine}

    def connections() -> int:
        """Those that still have memory: each has slab caches of its own."""
        caches = [machine.run(["cat", "/proc/slabinfo"]).stdout for machine in machines]
        return sum(text.count("smbdirect_recv_io") for text in caches)

    def use(messages: int) -> list[int]:
        options = ["--style", "blocking", "--count", messages, "--sizes", 1]
        echo.do("call", _PORTS["blocking"], *options)
        wait_until(lambda: connections() <= before, "the connections to end", timeout=20)
        return [machine.unreclaimable_memory() for machine in machines]

    before = connections()
    used = [use(messages) for messages in (_FEW_MESSAGES, _MESSAGES)]
    (scenario_log / "memory.log").write_text("".join(f"{in_use}\n" for in_use in used))
    grown = [after - before for before, after in zip(*used, strict=True)]
    assert max(grown) < _LEAKED, f"{grown} bytes more in use after {_MESSAGES} messages and answers"


def test_refused_port(echo: EchoServers) -> None:
    for end in echo.do("connect", _NOBODYS_PORT).values():
        assert end["result"] == "ECONNREFUSED"
        assert end["seconds"] < _ADDRESS_TIMEOUT


def test_peer_that_does_not_exist(echo: EchoServers) -> None:
    """An address of the link's network that nobody has."""
    nobody = str(echo.end.ipv4.network[-2])
    for end in echo.do("connect", _PORTS["blocking"], address=nobody).values():
        assert end["result"] in ("EHOSTUNREACH", "ETIMEDOUT")
        assert end["seconds"] < 2 * _ADDRESS_TIMEOUT + 2


def test_network_that_cannot_be_reached(echo: EchoServers) -> None:
    """An address to which the client has no route."""
    for end in echo.do("connect", _PORTS["blocking"], address="192.0.2.1").values():
        assert end["result"] == "ENETUNREACH"


def test_server_closes_in_mid_stream(echo: EchoServers) -> None:
    """The client's send fails as on TCP, and what it reads ends."""
    result = echo.do("stream", _PORTS["hangup"])
    assert result["send"] in ("EPIPE", "ECONNRESET")
    assert result["sent"] >= _HANG_UP_AFTER
    assert result["recv"] in ("end of stream", "ECONNRESET")
    assert result["seconds"] < 20


@pytest.mark.parametrize("style", _STYLES)
def test_client_closes_in_mid_frame(echo: EchoServers, style: str) -> None:
    """The server drops the unfinished frame, and serves the next client."""
    result = echo.do("leave", _PORTS[style])
    assert result["echoed"] == 4 + 65536
    answer = result["next"]["sizes"]["65536"]
    assert answer["received"] == answer["sent"]
