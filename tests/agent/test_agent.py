"""The agent's program itself, run on this computer: commands as ssh would run them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import psutil
import pytest
from tests.helpers.fake_machine import FakeMachine

from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.process import CommandResult
from smbdirect_testbed.machine.agent_client import AgentClient
from smbdirect_testbed.machine.running_agent import running_agent


class _ThisComputer(FakeMachine):
    def argv(self, command: Sequence[str], *, tty: bool = False) -> list[str]:
        return list(command)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentClient]:
    with running_agent(_ThisComputer(tmp_path, PurePosixPath(tmp_path))) as agent:
        yield agent


def _run(
    agent: AgentClient, *command: str, input: str | bytes | None = None, timeout: float = 20
) -> CommandResult:
    return agent.run(command, input=input, timeout=timeout)


def _files(tmp_path: Path) -> set[str]:
    return {p.name for p in (tmp_path / "agent").iterdir()}


def test_input_output_and_status(agent: AgentClient) -> None:
    done = _run(agent, "sh", "-c", "cat; echo err >&2; exit 3", input=b"in\n")
    assert (done.stdout, done.stderr, done.status) == ("in\n", "err\n", 3)
    assert _run(agent, "cat").stdout == ""
    assert _run(agent, "cat", input="").stdout == ""
    assert _run(agent, "sh", "-c", "kill -KILL $$").status == -signal.SIGKILL


def test_a_program_that_is_not_there(agent: AgentClient) -> None:
    done = _run(agent, "no-such-program")
    assert (done.status, done.stderr) == (127, "no-such-program: command not found\n")
    assert _run(agent, "/etc/passwd").status == 126


def test_all_bytes_pass_in_small_and_large(agent: AgentClient, tmp_path: Path) -> None:
    for data in (bytes(range(256)), os.urandom(300_000)):
        done = _run(agent, "sh", "-c", "tee /dev/stderr | od -An -v -tx1", input=data)
        assert bytes.fromhex("".join(done.stdout.split())) == data
        assert done.stderr == data.decode(errors="replace")
    assert _files(tmp_path) == {"agent.pyz"}


def test_what_python_ignores_is_not_ignored(agent: AgentClient) -> None:
    status = _run(agent, "grep", "SigIgn", "/proc/self/status").stdout
    # Without those of the C library itself, 32 and 33.
    assert int(status.split()[1], 16) & 0x7FFFFFFF == 0
    environment = _run(agent, "env").stdout
    assert "HOME=/root\n" in environment
    assert "PYTHON" not in environment


@pytest.mark.skipif(os.getuid() != 0, reason="needs namespaces")
def test_in_the_namespaces_of_another_process(agent: AgentClient) -> None:
    script = "hostname there; mount -t tmpfs none /mnt; touch /mnt/file; echo; exec sleep 60"
    unshare = ["unshare", "--net", "--uts", "--mount", "sh", "-c", script]
    with subprocess.Popen(unshare, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        for _ in range(2):
            done = agent.run(
                ["sh", "-c", "hostname; ls /mnt; cat /proc/net/dev"],
                input=None,
                timeout=20,
                namespaces_of=other.pid,
            )
            assert done.stdout.splitlines()[:2] == ["there", "file"]
            assert re.findall(r"(\w+):", done.stdout) == ["lo"]
        assert _run(agent, "hostname").stdout != "there\n"
        assert "file" not in _run(agent, "ls", "/mnt").stdout
        other.kill()
    with pytest.raises(ProvisionError, match="No such file"):
        agent.run(["true"], input=None, timeout=20, namespaces_of=other.pid + 1_000_000)


def test_what_is_left_in_the_background_holds_up_nobody(agent: AgentClient) -> None:
    begun = time.monotonic()
    done = _run(agent, "sh", "-c", "sleep 5 & echo $!")
    assert time.monotonic() - begun < 3
    os.kill(int(done.stdout), signal.SIGKILL)


def test_at_its_deadline_all_that_it_started_is_killed(agent: AgentClient) -> None:
    script = "echo begun; setsid sleep 4721 & sleep 4722 & sleep 4723"
    begun = time.monotonic()
    with pytest.raises(CommandFailed, match="did not end in time") as caught:
        _run(agent, "sh", "-c", script, timeout=0.5)
    assert 0.5 <= time.monotonic() - begun < 3
    assert caught.value.output == "begun\n"
    left = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"]]
    assert not [
        p for p in left if p.info["cmdline"][0] == "sleep" and "472" in p.info["cmdline"][1]
    ]
    assert _run(agent, "echo", "again").stdout == "again\n"


def test_several_at_once(agent: AgentClient) -> None:
    results: dict[int, str] = {}

    def run(number: int) -> None:
        results[number] = _run(agent, "sh", "-c", f"sleep 0.5; echo {number}").stdout

    threads = [threading.Thread(target=run, args=(n,)) for n in range(10)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun < 4
    assert results == {n: f"{n}\n" for n in range(10)}


def test_an_unknown_request(agent: AgentClient) -> None:
    with pytest.raises(ProvisionError, match="machine fake: fly: "):
        agent._channel.ask("fly", {})
    assert _run(agent, "true").ok
