"""Commands for an environment that is up, with this computer in place of a host."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from click.testing import CliRunner

from smbdirect_testbed.cli import instances
from smbdirect_testbed.lib.errors import UsageError


class _ThisComputer:
    def argv(self, command: Sequence[str], *, tty: bool = False) -> list[str]:
        return list(command)


class _Instance:
    name = "one"

    def __init__(self) -> None:
        self.removed = False

    def hosts(self) -> dict[str, _ThisComputer]:
        return {"client": _ThisComputer()}

    def in_use(self) -> bool:
        return False

    def remove(self) -> None:
        self.removed = True


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> _Instance:
    """The one instance that is up."""
    found = _Instance()

    def find(name: str | None) -> _Instance:
        assert name in (None, found.name)
        return found

    monkeypatch.setattr(instances, "find_instance", find)
    return found


def _exec(*command: str) -> object:
    return instances.exec_.main(["client", "--", *command], standalone_mode=False)


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 42", 42), ("kill -KILL $$", 128 + 9), ("kill -SEGV $$", 128 + 11)],
)
def test_status_of_a_command(
    up: _Instance, capfd: pytest.CaptureFixture[str], script: str, status: int
) -> None:
    assert _exec("sh", "-c", f"echo out; echo err >&2; {script}") == status
    assert capfd.readouterr() == ("out\n", "err\n")


def test_status_of_a_shell_that_a_signal_ended(up: _Instance) -> None:
    # A command as ssh is one, which is not started by a shell of ours.
    assert instances._called(["sh", "-c", "kill -TERM $$"]) == 128 + 15


def test_a_command_that_does_not_exist(up: _Instance) -> None:
    assert _exec("no-such-command") == 127


@pytest.mark.parametrize("words", [["--instance", "one"], [], ["one"]])
def test_down(up: _Instance, words: list[str]) -> None:
    done = CliRunner().invoke(instances.down, words)
    assert up.removed
    assert "one is down" in done.output
    assert ("note: say it as for exec and shell: down --instance one" in done.output) == (
        words == ["one"]
    )


def test_down_with_two_names(up: _Instance) -> None:
    done = CliRunner().invoke(instances.down, ["one", "--instance", "two"])
    assert isinstance(done.exception, UsageError)
    assert not up.removed
