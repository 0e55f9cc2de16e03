"""What an agent says of files: it is in a machine that may be hostile."""

from __future__ import annotations

import ast
from contextlib import closing, suppress
from pathlib import Path, PurePosixPath
from queue import SimpleQueue

import pytest
from tests.helpers.fake_machine import FakeMachine

from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.machine.agent_client import AgentClient


class _Liar:
    """An agent that says of every command that its output is in the same file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._answers: SimpleQueue[bytes] = SimpleQueue()

    def send(self, data: bytes) -> None:
        number = ast.literal_eval(data.decode())["id"]
        answer = {"id": number, "ok": {"status": 0, "out_file": self._name, "err": ""}}
        self._answers.put(ascii(answer).encode() + b"\n")

    def receive(self) -> bytes:
        return self._answers.get()

    def interrupt(self) -> None:
        self._answers.put(b"")

    def close(self) -> None: ...


@pytest.mark.parametrize("name", ["/secret", "../secret", "..", ".", "link", "", "a/b"])
def test_only_files_of_its_own_are_read(tmp_path: Path, name: str) -> None:
    shared = tmp_path / "shared"
    (shared / "agent").mkdir(parents=True)
    secret = shared / "secret"
    secret.write_text("PRIVATE KEY")
    (shared / "agent" / "link").symlink_to(secret)
    liar = _Liar(str(secret) if name == "/secret" else name)
    machine = FakeMachine(shared, PurePosixPath("/testbed"))
    with (
        closing(AgentClient(machine, liar, started=True)) as agent,
        pytest.raises(ProvisionError, match="named a file that is not its own"),
    ):
        agent.run(["true"], timeout=5)
    assert secret.read_text() == "PRIVATE KEY"


def test_the_directory_for_output_may_have_become_a_link(tmp_path: Path) -> None:
    shared, precious = tmp_path / "shared", tmp_path / "precious"
    precious.mkdir()
    (precious / "key").write_text("PRIVATE KEY")
    machine = FakeMachine(shared, PurePosixPath("/testbed"))
    with closing(AgentClient(machine, _Liar("key"), started=True)) as agent:
        (shared / "agent").rmdir()
        (shared / "agent").symlink_to(precious)
        with pytest.raises(ProvisionError, match="named a file that is not its own"):
            agent.run(["true"], timeout=5)
        # A large request goes by a file.
        with suppress(ProvisionError):
            agent.run(["x" * 1000], timeout=5)
    assert [(f.name, f.read_text()) for f in precious.iterdir()] == [("key", "PRIVATE KEY")]
