"""The suite's server, client and checks, over TCP.

TCP has no RDMA. For the checks of RDMA, a connection within this process stands in for SMB-Direct,
with tokens that this file keeps: enough to see that server and checks do what they say, and that
each check notices what it is for.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

import smbdirect_testbed
from smbdirect_testbed.echo import connection as echo_connection
from smbdirect_testbed.echo import server as echo_server
from smbdirect_testbed.echo.bench import Plan, measure
from smbdirect_testbed.echo.checking import CheckResult, Outcome, Target
from smbdirect_testbed.echo.client import EchoClient, WrongAnswer
from smbdirect_testbed.echo.connection import Transport, connect, listen
from smbdirect_testbed.echo.main import main
from smbdirect_testbed.echo.operation import Operation
from smbdirect_testbed.echo.pack import pack
from smbdirect_testbed.echo.protocol import EchoRequest, Request, TransferRequest, reply_count
from smbdirect_testbed.echo.server import EchoServer, Limits
from smbdirect_testbed.echo.suite import ALL_CHECKS, run_suite

LOCALHOST = "127.0.0.1"
LARGEST_REGISTRATION = 64 * 1024


@contextmanager
def serving(
    transport: Transport = Transport.TCP, limits: Limits | None = None
) -> Iterator[tuple[EchoServer, int]]:
    listener = listen(LOCALHOST, 0, transport)
    port = listener.getsockname()[1]
    with EchoServer([(listener, transport)], limits) as server:
        yield server, port


def suite(port: int, transport: Transport = Transport.TCP, only: str = "") -> list[CheckResult]:
    target = Target(LOCALHOST, port, transport, patience=5)
    return list(run_suite(target, seed=1, only=only))


def failures(results: list[CheckResult]) -> dict[str, str]:
    return {r.name: r.message for r in results if r.outcome is Outcome.FAILED}


def test_all_checks_pass_over_tcp() -> None:
    with serving() as (server, port):
        results = suite(port)
    assert failures(results) == {}
    assert {r.name for r in results if r.outcome is Outcome.SKIPPED} == {
        c.name for c in ALL_CHECKS if c.rdma
    }
    assert server.crashes == 0


# RDMA without RDMA.


class Piece(NamedTuple):
    offset: int
    token: int
    length: int


@dataclass
class Region:
    base: int
    memory: memoryview
    remote_write: bool
    connection: frozenset[object]


@dataclass
class Fabric:
    """Tokens and the memory behind them; the flags make it do what it must not."""

    regions: dict[int, Region] = field(default_factory=dict)
    overshoot: int = 0
    keep_dead: bool = False
    never_invalidate: bool = False
    ignore_direction: bool = False
    ignore_bounds: bool = False
    ignore_connection: bool = False
    lose: int = 0
    _tokens: Iterator[int] = field(default_factory=lambda: itertools.count(0x100))

    def register(
        self, sock: socket.socket, buffer: bytearray | memoryview, remote_write: bool
    ) -> tuple[Piece, ...]:
        memory = memoryview(buffer)
        pieces = []
        for at in range(0, len(memory), LARGEST_REGISTRATION):
            part = memory[at : at + LARGEST_REGISTRATION]
            token = next(self._tokens)
            base = token << 32
            self.regions[token] = Region(base, part, remote_write, ends(sock))
            pieces.append(Piece(base, token, len(part)))
        return tuple(pieces)

    def forget(self, token: int) -> None:
        if not self.keep_dead:
            self.regions.pop(token, None)

    def move(
        self, sock: socket.socket, pieces: Sequence[Piece], data: memoryview, *, write: bool
    ) -> int:
        done = 0
        for piece in pieces:
            region = self.regions.get(piece.token)
            at = piece.offset - region.base if region else 0
            if (
                region is None
                or (region.remote_write != write and not self.ignore_direction)
                or (region.connection != ends(sock) and not self.ignore_connection)
                or (not 0 <= at <= len(region.memory) - piece.length and not self.ignore_bounds)
            ):
                sock.shutdown(socket.SHUT_RDWR)
                raise OSError(errno.EIO, "remote access error")
            length = piece.length - self.lose
            if write:
                source = data[done : done + length]
                if self.overshoot:
                    beyond(region.memory, at + length)
                if self.ignore_bounds:
                    at = max(0, at)
                    source = source[: len(region.memory) - at]
                region.memory[at : at + len(source)] = source
            else:
                data[done : done + length] = region.memory[at : at + length]
            done += piece.length
        return done


def beyond(memory: memoryview, at: int) -> None:
    """Change the byte behind a place in memory that belongs to more."""
    whole = memory.obj
    assert isinstance(whole, bytearray)
    begin = address(memory) - address(whole)
    whole[begin + at] ^= 0xFF


def address(memory: memoryview | bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def ends(sock: socket.socket) -> frozenset[object]:
    return frozenset([sock.getsockname(), sock.getpeername()])


class Registration:
    def __init__(self, fabric: Fabric, descriptors: tuple[Piece, ...]) -> None:
        self.descriptors = descriptors
        self._fabric = fabric

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for d in self.descriptors:
            self._fabric.forget(d.token)


@pytest.fixture
def fabric(monkeypatch: pytest.MonkeyPatch) -> Fabric:
    made = Fabric()

    def send_with_invalidate(sock: socket.socket, data: bytes, token: int) -> int:
        if not made.never_invalidate:
            made.forget(token)
        sock.sendall(data)
        return len(data)

    stub = types.SimpleNamespace(
        Descriptor=Piece,
        rdma_register=lambda s, b, *, remote_write: Registration(
            made, made.register(s, b, remote_write)
        ),
        rdma_writev=lambda s, d, b: made.move(s, d, memoryview(b[0]), write=True),
        rdma_readv=lambda s, d, b: made.move(s, d, memoryview(b[0]), write=False),
        send_with_invalidate=send_with_invalidate,
        connection_parameters=lambda s: types.SimpleNamespace(max_read_write_size=8 << 20),
    )
    monkeypatch.setitem(sys.modules, "smbdirect_testbed.smbdirect", stub)
    monkeypatch.setattr(smbdirect_testbed, "smbdirect", stub, raising=False)
    monkeypatch.setattr(echo_connection, "IPPROTO_SMBDIRECT", socket.IPPROTO_TCP)
    return made


def rdma_suite(only: str = "") -> dict[str, str]:
    with serving(Transport.SMBDIRECT) as (server, port):
        results = suite(port, Transport.SMBDIRECT, only)
    assert results
    assert server.crashes == 0
    return failures(results)


@pytest.mark.usefixtures("fabric")
def test_all_checks_pass_with_rdma() -> None:
    assert rdma_suite() == {}


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("overshoot", "rdma_read_sizes", "memory behind what was registered"),
        ("lose", "rdma_read_sizes", "1 bytes"),
        ("lose", "rdma_write_offsets", "the buffer after all writes"),
        ("lose", "rdma_read_many_descriptors", "pieces"),
        ("lose", "rdma_write_many_descriptors", "pieces"),
        ("lose", "rdma_several_registrations", "all eight"),
        ("never_invalidate", "send_with_invalidate", "no good"),
        ("keep_dead", "dead_token", "no good"),
        ("ignore_direction", "memory_to_read_is_written", "no good"),
        ("ignore_direction", "memory_to_write_is_read", "no good"),
        ("ignore_bounds", "token_beyond_its_memory", "no good"),
        ("ignore_connection", "token_of_another_connection", "no good"),
    ],
)
def test_checks_notice_a_fault(fabric: Fabric, fault: str, check: str, message: str) -> None:
    setattr(fabric, fault, 1)
    assert message in rdma_suite(check)[check]


def rdma_bench(operation: Operation) -> list[int]:
    with serving(Transport.SMBDIRECT) as (_, port):
        ports = {Transport.SMBDIRECT: port}
        plan = Plan(LOCALHOST, ports, [operation], [100_000], [1, 4], seconds=0.02, rounds=2)
        return [r["operations"] for r in measure(plan)["results"]]


@pytest.mark.usefixtures("fabric")
@pytest.mark.parametrize("operation", [Operation.RDMA_READ, Operation.RDMA_WRITE])
def test_rdma_is_measured(operation: Operation) -> None:
    one, four = rdma_bench(operation)
    assert one >= 2
    assert four >= 8


@pytest.mark.parametrize("operation", [Operation.RDMA_READ, Operation.RDMA_WRITE])
def test_measuring_notices_a_lost_byte(fabric: Fabric, operation: Operation) -> None:
    fabric.lose = 1
    with pytest.raises(WrongAnswer, match=f"{operation} of 100000 bytes: at byte"):
        rdma_bench(operation)


def changed_echo(self: echo_server._Session, request: EchoRequest) -> None:
    data = bytearray(bytes(request.data) * request.factor)[: request.max_response]
    if len(data) > 20:
        data[20] ^= 1
    self._connection.send(reply_count(request.message_id, len(data)), bytes(data))


def test_checks_notice_changed_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo_server._Session, "_echo", changed_echo)
    with serving() as (_, port):
        found = failures(suite(port, only="echo_small"))
    assert found["echo_small"].startswith("echo of 21 bytes: at byte 20 of 21: ")


def test_checks_notice_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(frame: memoryview, *, most_descriptors: int) -> Request:
        raise IndexError("as a careless server would")

    monkeypatch.setattr(echo_server, "parse_request", parse)
    with serving() as (server, port):
        assert "bad_opcode" in failures(suite(port, only="bad_opcode"))
    assert server.crashes == 1


def test_checks_notice_a_missing_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def transfer(self: echo_server._Session, request: TransferRequest) -> None:
        self._connection.send(reply_count(request.message_id, request.length))

    monkeypatch.setattr(echo_server._Session, "_transfer", transfer)
    with serving() as (_, port):
        found = failures(suite(port, only="transfer_"))
    assert {"transfer_bad_index", "transfer_out_of_range", "transfer_without_rdma"} <= set(found)
    assert "answered OK" in found["transfer_out_of_range"]


def test_a_silent_server_is_no_disconnect() -> None:
    with socket.create_server((LOCALHOST, 0)) as listener:
        target = Target(LOCALHOST, listener.getsockname()[1], Transport.TCP, patience=0.2)
        for name in ("bad_magic", "echo_small"):
            (result,) = run_suite(target, seed=1, only=name)
            assert result.outcome is Outcome.FAILED
            assert "no progress in 0.2 s" in result.message


# The server's bounds, and its end.


def test_more_connections_than_allowed_are_closed() -> None:
    with serving(limits=Limits(connections=2)) as (_, port):
        clients = [EchoClient(connect(LOCALHOST, port, Transport.TCP)) for _ in range(2)]
        for client in clients:
            assert bytes(client.echo(b"x")) == b"x"
        with connect(LOCALHOST, port, Transport.TCP) as third:
            assert third.socket.recv(1) == b""
        for client in clients:
            assert bytes(client.echo(b"x")) == b"x"
            client.close()


def test_a_client_that_says_nothing_is_closed() -> None:
    with (
        serving(limits=Limits(patience=0.2)) as (_, port),
        connect(LOCALHOST, port, Transport.TCP) as client,
    ):
        client.send_raw(b"\0\0")
        client.socket.settimeout(5)
        assert client.socket.recv(1) == b""


def test_the_server_ends_with_clients_connected() -> None:
    with serving() as (_, port):
        client = EchoClient(connect(LOCALHOST, port, Transport.TCP))
        assert bytes(client.echo(b"x")) == b"x"
    with client:
        assert client.connection.socket.recv(1) == b""
    assert not [t for t in threading.enumerate() if "_serve" in t.name]
    with pytest.raises(OSError, match=f"cannot connect to 127.0.0.1 port {port} over tcp: Conn"):
        connect(LOCALHOST, port, Transport.TCP)


# One file, as on a machine without the testbed.


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not Path(smbdirect_testbed.__file__).with_name("smbdirect.py").exists():
        pytest.skip("smbdirect_testbed.smbdirect is not there")
    file = tmp_path_factory.mktemp("packed") / "echo.pyz"
    pack(file)
    return file


@contextmanager
def packed_server(program: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-I", str(program), "serve", "--listen", LOCALHOST]
    with subprocess.Popen(
        [*command, "--transport", "tcp", "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout
            line = server.stdout.readline()
            assert server.stdout.readline() == "ready; Ctrl-C ends it\n"
            yield server, line.split()[4]
        finally:
            with suppress(ProcessLookupError):
                server.kill()


def test_packed_file(program: Path, tmp_path: Path) -> None:
    packed = [sys.executable, "-I", str(program)]
    with packed_server(program) as (server, port):
        where = [LOCALHOST, "--transport", "tcp", "--port", port]
        run = subprocess.run(
            [*packed, "run", *where, "--json"], capture_output=True, text=True, check=True
        )
        *checks, verdict = map(json.loads, run.stdout.splitlines())
        assert verdict["verdict"] == "passed"
        assert [c["check"] for c in checks] == [c.name for c in ALL_CHECKS]
        results = tmp_path / "bench.json"
        quick = ["--seconds", "0.05", "--size", "1K", "--json", str(results)]
        subprocess.run([*packed, "bench", *where, *quick], check=True, capture_output=True)
        shown = subprocess.run(
            [*packed, "report", str(results)], check=True, capture_output=True, text=True
        )
        assert "1 KiB" in shown.stdout
        server.send_signal(2)
        assert server.wait(10) == 0


def test_exit_status_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server((LOCALHOST, 0)) as listener:
        port = str(listener.getsockname()[1])
    assert main(["run", LOCALHOST, "--transport", "tcp", "--port", port]) == 3
    refused = f"cannot connect to 127.0.0.1 port {port} over tcp: Connection refused"
    assert capsys.readouterr().err == f"smbdirect-testbed echo: {refused}\n"
    assert main(["run"]) == 2
    assert main(["run", LOCALHOST, "-k", "nonsense"]) == 2
    assert main(["report", "/dev/null"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_a_failing_check_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(echo_server._Session, "_echo", changed_echo)
    with serving() as (_, port):
        where = [LOCALHOST, "--transport", "tcp", "--port", str(port)]
        assert main(["run", *where, "-k", "echo_small"]) == 1
    assert "FAILED: 1 failed" in capsys.readouterr().out
