"""A machine whose commands go by ssh and whose kernel log goes to a file."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from smbdirect_testbed import process
from smbdirect_testbed.carriers.console import ConsoleReader
from smbdirect_testbed.carriers.watched_run import run_watched
from smbdirect_testbed.errors import CommandFailed
from smbdirect_testbed.machine import Machine, SharedDirectory
from smbdirect_testbed.process import CommandResult
from smbdirect_testbed.ssh import FAILED, SshChannel

_PANIC = re.compile(r"Kernel panic - .*")


class SshMachine(Machine):
    """What the carriers ``vm`` and ``uml`` have in common."""

    def __init__(
        self, name: str, shared: SharedDirectory, console: Path, channel: SshChannel
    ) -> None:
        super().__init__(name, shared, console)
        self.channel = channel
        self._reader = ConsoleReader(console)
        self._death: str | None = None

    @abstractmethod
    def _ended(self, *, timeout: float = 0) -> bool:
        """Whether the machine's process has ended.

        :param timeout: seconds to wait for that
        """

    @abstractmethod
    def _last_words(self) -> str:
        """Why the machine's process has ended, when its kernel did not say."""

    def argv(self, command: Sequence[str], *, tty: bool = False) -> list[str]:
        return self.channel.argv(command, tty=tty)

    def death(self) -> str | None:
        if self._death is None:
            # In this order: at its end the process has written all of the console.
            ended = self._ended()
            panics = filter(None, map(_PANIC.search, self._reader.new_lines()))
            if panic := next(panics, None):
                self._death = panic.group()
            elif ended:
                self._death = self._last_words()
        return self._death

    def run(
        self,
        command: Sequence[str],
        *,
        input: str | bytes | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> CommandResult:
        tag = uuid4().hex
        argv = self.channel.argv(command, tag=tag)
        try:
            result = run_watched(argv, input=input, timeout=timeout, watch=self.raise_if_dead)
        except CommandFailed as e:
            with suppress(CommandFailed):
                process.run(self.channel.kill_argv(tag), timeout=10)
            raise CommandFailed(command, e.status, e.output) from None
        if result.status == FAILED:
            # The connection breaks a moment before its process is gone.
            self._ended(timeout=1)
        if not result.ok:
            self.raise_if_dead()
        result = CommandResult(tuple(command), result.status, result.stdout, result.stderr)
        return result.check() if check else result
