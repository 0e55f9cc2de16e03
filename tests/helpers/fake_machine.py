"""A fake machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from smbdirect_testbed.lib.process import CommandResult
from smbdirect_testbed.machine.machine import Machine
from smbdirect_testbed.machine.shared_directory import SharedDirectory


class FakeMachine(Machine):
    """Lives until a test says what it died of; tests say what commands do.

    :param directory: the shared one, which is here; with the console
    :param there: where it is in the machine
    """

    def __init__(self, directory: Path, there: PurePosixPath, console: str = "console") -> None:
        shared = SharedDirectory(directory, there)
        super().__init__("fake", shared, directory / console)
        self.died: str | None = None

    def argv(self, command: Sequence[str], *, tty: bool = False) -> list[str]:
        raise NotImplementedError

    def death(self) -> str | None:
        return self.died

    def condemn(self, reason: str) -> None:
        self.died = reason

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
        self.does(command, input)
        return CommandResult(tuple(command), 0, "", "")

    def does(self, command: Sequence[str], input: str | bytes | None) -> None:
        """What a command does."""
        raise NotImplementedError
