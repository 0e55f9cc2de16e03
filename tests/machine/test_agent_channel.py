"""Talking to the agent: answers to others, ends, several threads."""

from __future__ import annotations

import ast
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path, PurePosixPath

import pytest
from tests.helpers.fake_machine import FakeMachine

from smbdirect_testbed.lib.errors import MachineDied, ProvisionError
from smbdirect_testbed.machine.agent_channel import AgentChannel
from smbdirect_testbed.machine.agent_connection import AgentSocket

Answer = Callable[[dict[str, object]], list[dict[str, object]]]


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path, PurePosixPath(tmp_path))


@pytest.fixture
def agent_of(tmp_path: Path) -> Iterator[Callable[[Answer], Path]]:
    """Starts an agent behind a Unix socket; it ends when it has no answer."""
    path = tmp_path / "agent.sock"
    server = socket.socket(socket.AF_UNIX)
    threads = []

    def start(answer: Answer) -> Path:
        server.bind(str(path))
        server.listen(1)

        def serve() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("rwb") as stream:
                for line in stream:
                    request = ast.literal_eval(line.decode())
                    if request["do"] == "read":
                        request = ast.literal_eval(Path(request["with"]["file"]).read_text())
                    answers = answer(request)
                    if not answers:
                        return
                    for one in answers:
                        stream.write(ascii(one).encode() + b"\n")
                    stream.flush()

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[0].start()
        return path

    yield start
    server.close()
    for thread in threads:
        thread.join(timeout=10)


def test_answers_to_others_are_skipped(
    machine: FakeMachine, agent_of: Callable[[Answer], Path]
) -> None:
    port = agent_of(lambda r: [{"id": 1, "ok": "stale"}, {"id": r["id"], "ok": r["with"]}])
    with closing(AgentChannel(machine, AgentSocket.to(port), started=True)) as agent:
        assert agent.ask("echo", {"a": 1}) == {"a": 1}
        assert agent.ask("echo", {"b": "x" * 100_000}) == {"b": "x" * 100_000}


def test_several_threads(machine: FakeMachine, agent_of: Callable[[Answer], Path]) -> None:
    results: dict[int, object] = {}
    port = agent_of(lambda r: [{"id": r["id"], "ok": r["with"]}])
    with closing(AgentChannel(machine, AgentSocket.to(port), started=True)) as agent:

        def ask(number: int) -> None:
            results[number] = agent.ask("echo", {"number": number})

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {n: {"number": n} for n in range(20)}


def test_errors_and_ends(machine: FakeMachine, agent_of: Callable[[Answer], Path]) -> None:
    port = agent_of(lambda r: [{"id": r["id"], "error": "no"}] if r["do"] == "fail" else [])
    with closing(AgentChannel(machine, AgentSocket.to(port), started=True)) as agent:
        with pytest.raises(ProvisionError, match="machine fake: no"):
            agent.ask("fail", {})
        with pytest.raises(ProvisionError, match="end: the agent in machine fake ended"):
            agent.ask("end", {})
        machine.died = "QEMU has ended"
        with pytest.raises(MachineDied, match="QEMU has ended"):
            agent.ask("again", {})


def test_a_port_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ProvisionError, match="cannot reach the agent"):
        AgentSocket.to(tmp_path / "x")


def test_a_serial_port_never_holds_a_long_request(machine: FakeMachine, tmp_path: Path) -> None:
    ours, its = socket.socketpair()
    lines = []

    def serve() -> None:
        with its, its.makefile("rwb") as stream:
            for line in stream:
                lines.append(line)
                request = ast.literal_eval(line.decode())
                if request["do"] == "read":
                    request = ast.literal_eval(Path(request["with"]["file"]).read_text())
                answer = {"id": request["id"], "ok": request["with"]}
                stream.write(ascii(answer).encode() + b"\n")
                stream.flush()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with closing(AgentChannel(machine, AgentSocket(ours), started=True)) as agent:
        for length in (1, 400, 600, 5000):
            assert agent.ask("echo", {"text": "x" * length}) == {"text": "x" * length}
        assert "id" in ast.literal_eval(lines[0].decode())
        assert max(map(len, lines)) < 600
        assert list((tmp_path / "agent").iterdir()) == []
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_closing_is_not_noticed_while_somebody_else_holds_the_connection(
    machine: FakeMachine,
) -> None:
    ours, its = socket.socketpair()
    with its, ours.dup():
        AgentChannel(machine, AgentSocket(ours), started=True).close()
        its.settimeout(0)
        with pytest.raises(BlockingIOError):
            its.recv(1)
        assert its.send(b"x") == 1


@pytest.mark.parametrize(
    "nonsense",
    [
        b"[   12.3] smbdirect: a message of the kernel\n",
        b"\xff\xfe\n",
        b"{}\n",
        b"7\n",
        b"{'id': 'x', 'ok': 1}\n",
        b"(" * 100_000 + b"\n",
        b"x" * (2 << 20),
    ],
    ids=["kernel", "bytes", "empty", "number", "id", "nested", "endless"],
)
def test_what_is_no_answer_is_told_at_once(machine: FakeMachine, nonsense: bytes) -> None:
    ours, its = socket.socketpair()
    begun = time.monotonic()
    sender = threading.Thread(target=lambda: _send(its, nonsense), daemon=True)
    with its, closing(AgentChannel(machine, AgentSocket(ours), started=True)) as agent:
        sender.start()
        for _ in range(2):
            with pytest.raises(ProvisionError, match="sent what is no answer"):
                agent.ask("echo", {})
    assert time.monotonic() - begun < 5


def _send(connection: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        connection.sendall(data)
