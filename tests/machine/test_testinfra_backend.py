"""testinfra's questions to a host, with a machine that runs them in a shell on this computer."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest
from tests.helpers.fake_machine import FakeMachine

from smbdirect_testbed.config.spec import Role
from smbdirect_testbed.lib.errors import CommandFailed, MachineDied
from smbdirect_testbed.lib.process import CommandResult
from smbdirect_testbed.machine.host import Host

_PID = 4711


class ShellMachine(FakeMachine):
    """Runs commands on this computer, and keeps what it was asked for."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, PurePosixPath("/testbed"))
        self.commands: list[list[str]] = []
        self.namespaces: set[int] = set()

    def run(
        self,
        command: Sequence[str],
        *,
        input: str | bytes | None = None,
        timeout: float = 60,
        check: bool = True,
        namespaces_of: int = 0,
    ) -> CommandResult:
        self.raise_if_dead()
        self.commands.append(list(command))
        self.namespaces.add(namespaces_of)
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise CommandFailed(command, done.returncode, done.stdout + done.stderr)
        return CommandResult(tuple(command), done.returncode, done.stdout, done.stderr)


@pytest.fixture
def machine(tmp_path: Path) -> ShellMachine:
    return ShellMachine(tmp_path)


@pytest.fixture
def host(machine: ShellMachine) -> Host:
    return Host("server", Role.SERVER, machine, (), _PID)


def test_commands_run_in_the_hosts_namespaces(host: Host, machine: ShellMachine) -> None:
    assert host.testinfra.run("echo one; echo two >&2").stdout == "one\n"
    assert machine.commands == [["sh", "-c", "echo one; echo two >&2"]]
    assert machine.namespaces == {_PID}


def test_a_command_that_fails_is_a_result(host: Host) -> None:
    done = host.testinfra.run("echo said; echo wrong >&2; exit 3")
    assert (done.rc, done.stdout, done.stderr) == (3, "said\n", "wrong\n")
    with pytest.raises(AssertionError, match="exit code 3"):
        host.testinfra.check_output("exit 3")


def test_arguments_are_quoted(host: Host) -> None:
    hostile = 'it\'s; echo $HOME `id` "two"'
    assert host.testinfra.run("printf %%s %s", hostile).stdout == hostile


def test_what_is_not_ascii(host: Host, machine: ShellMachine) -> None:
    """Its encoding is known, and no Python is started in the machine to ask for it."""
    done = host.testinfra.run("printf %%s %s", "größer")
    assert done.stdout == "größer"
    assert done.stdout_bytes == "größer".encode()
    assert len(machine.commands) == 1


def test_files(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_text("abc")
    file.chmod(0o640)
    seen = host.testinfra.file(str(file))
    assert (seen.exists, seen.is_file, seen.size, seen.mode) == (True, True, 3, 0o640)
    assert seen.content_string == "abc"
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert seen.sha256sum == abc
    assert not host.testinfra.file(f"{file}.not").exists


def test_it_names_the_host(host: Host) -> None:
    assert "server" in repr(host.testinfra)


def test_a_dead_machine_is_told_as_such(host: Host, machine: ShellMachine) -> None:
    machine.died = "Kernel panic"
    with pytest.raises(MachineDied, match="Kernel panic"):
        host.testinfra.file("/etc").exists  # noqa: B018
