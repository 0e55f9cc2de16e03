"""A machine that is reached by its agent and by ssh, with a kernel log in a file."""

from __future__ import annotations

import re
import threading
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from smbdirect_testbed.carriers.console import ConsoleReader
from smbdirect_testbed.carriers.watched_run import run_watched
from smbdirect_testbed.lib import process
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.process import CommandResult
from smbdirect_testbed.lib.wait import wait_until
from smbdirect_testbed.machine.agent_client import AgentClient
from smbdirect_testbed.machine.agent_connection import Connection
from smbdirect_testbed.machine.machine import Machine
from smbdirect_testbed.machine.shared_directory import SharedDirectory
from smbdirect_testbed.machine.ssh import FAILED, SshChannel

_PANIC = re.compile(r"Kernel panic - .*")


class SshMachine(Machine):
    """The common part of the carriers ``vm`` and ``uml``.

    The process that started the machine holds the connection to its agent, which runs commands.
    Other processes use ssh; so do commands that need their own standard input and output.

    :param channel: its connection is opened when it is first needed
    """

    def __init__(
        self, name: str, shared: SharedDirectory, console: Path, channel: SshChannel
    ) -> None:
        super().__init__(name, shared, console)
        self.channel = channel
        self._reader = ConsoleReader(console)
        self._death: str | None = None
        self._opening = threading.Lock()
        self._open_until: float | None = None

    def hold_agent(self, connection: Connection, *, started: bool) -> AgentClient:
        """Have commands run by the agent at the other end of a connection, until :meth:`close`.

        :param started: it runs already
        """
        self.agent = AgentClient(self, connection, started=started)
        return self.agent

    def open_channel_when_needed(self, *, timeout: float) -> None:
        """Open the channel at the first command that goes by ssh.

        :param timeout: seconds until giving up; commands then fail as they do without a channel
        """
        self._open_until = timeout

    def close(self) -> None:
        """Stop watching the machine; it runs on."""
        if self.agent:
            self.agent.close()
            self.agent = None

    @abstractmethod
    def _ended(self, *, timeout: float = 0) -> bool:
        """Whether the machine's process has ended.

        :param timeout: seconds to wait for that
        """

    @abstractmethod
    def _kill(self) -> None:
        """Kill the machine's process; nothing happens when it has ended."""

    @abstractmethod
    def _last_words(self) -> str:
        """Why the machine's process has ended, when its kernel did not say."""

    def argv(self, command: Sequence[str], *, tty: bool = False) -> list[str]:
        self._open_channel()
        return self.channel.argv(command, tty=tty)

    def condemn(self, reason: str) -> None:
        if self._death is None:
            self._death = reason
        self._kill()

    def death(self) -> str | None:
        if self._death is None:
            # In this order: after its end the process has written all of the console.
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
        namespaces_of: int = 0,
    ) -> CommandResult:
        if self.agent:
            result = self.agent.run(
                command, input=input, timeout=timeout, namespaces_of=namespaces_of
            )
            if not result.ok:
                self.raise_if_dead()
            return result.check() if check else result
        self._open_channel()
        tag = uuid4().hex
        argv = self.channel.argv(self.inside(namespaces_of, command), tag=tag)
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

    def _open_channel(self) -> None:
        with self._opening:
            if self._open_until is None:
                return
            timeout, self._open_until = self._open_until, None

            def opened() -> bool:
                # Until sshd has started or restarted, it refuses, or has another machine's key.
                with suppress(ProvisionError, OSError):
                    self.channel.open(timeout=timeout)
                    return True
                return self.death() is not None

            with suppress(ProvisionError):
                wait_until(opened, "ssh to the machine", timeout=timeout)
