"""A machine: one running kernel that takes commands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from smbdirect_testbed.lib.errors import MachineDied, ProvisionError
from smbdirect_testbed.lib.process import CommandResult
from smbdirect_testbed.machine.shared_directory import SharedDirectory

if TYPE_CHECKING:
    from smbdirect_testbed.machine.agent_client import AgentClient


class Machine(ABC):
    """A running kernel from a carrier.

    ::

        references = server.machine.run(["cat", "/sys/module/smbdirect_socket/refcnt"]).stdout
        assert client.machine.death() is None

    :param name: unique within an environment
    :param shared: a directory seen by both sides, on no disk of the machine
    :param console: a file on this computer that grows with the machine's kernel log; it outlives
        the machine, so that a panic can be read from it
    """

    accelerator = "unknown"
    """What runs its instructions: kvm, tcg."""
    provenance: Mapping[str, str] = MappingProxyType({})
    """What carries it, and how its start went, for the results: names and values."""
    prepared: Mapping[str, str] = MappingProxyType({})
    """What is known of a clone: what the preparation of its template returned."""
    agent: AgentClient | None = None
    """The agent, while there is one: the carrier's, or that of :mod:`.running_agent`."""

    def __init__(self, name: str, shared: SharedDirectory, console: Path) -> None:
        self.name = name
        self.shared = shared
        self.console = console

    @abstractmethod
    def argv(self, command: Sequence[str], *, tty: bool = False) -> list[str]:
        """The argv that, run on this computer, runs ``command`` in the machine.

        It passes on standard input, output, error and the exit status.
        """

    @abstractmethod
    def death(self) -> str | None:
        """Why the machine no longer runs (the panic's line, if any); None while it does."""

    @abstractmethod
    def condemn(self, reason: str) -> None:
        """Declare it dead and kill it: it hangs, or there is no time to end it in good order.

        Everybody who waits for it learns of its death soon.
        """

    @abstractmethod
    def run(
        self,
        command: Sequence[str],
        *,
        input: str | bytes | None = None,
        timeout: float = 60,
        check: bool = True,
        namespaces_of: int = 0,
    ) -> CommandResult:
        """Run a command in the machine to its end.

        :param namespaces_of: a process of the machine in whose network, mount and UTS namespaces
            the command runs; 0 for the machine's own
        :param timeout: seconds until it is given up, and ended in the machine
        :raises CommandFailed: status other than 0 (with ``check``), or the deadline passed
        :raises MachineDied: the machine stopped running; noticed at once, not at the deadline
        """

    @staticmethod
    def inside(pid: int, command: Sequence[str]) -> list[str]:
        """The command to run in the machine that runs another in the namespaces of a process."""
        if not pid:
            return list(command)
        return ["nsenter", f"--target={pid}", "--net", "--mount", "--uts", "--", *command]

    def unreclaimable_memory(self) -> int:
        """Bytes of the kernel's that no shortage gives back; what leaks adds to them.

        Source: SUnreclaim and VmallocUsed in proc_meminfo(5).

        :raises MachineDied: the machine stopped running
        """
        lines = dict(
            line.split(":") for line in self.run(["cat", "/proc/meminfo"]).stdout.splitlines()
        )
        return 1024 * sum(int(lines[name].split()[0]) for name in ("SUnreclaim", "VmallocUsed"))

    def required_agent(self) -> AgentClient:
        """The agent; for what is only done while there is one.

        :raises ProvisionError: there is none
        """
        if self.agent is None:
            raise ProvisionError(f"machine {self.name} has no agent")
        return self.agent

    def raise_if_dead(self) -> None:
        """Raise :class:`MachineDied` with the reason, if the machine no longer runs."""
        if reason := self.death():
            raise MachineDied(f"machine {self.name} died: {reason}", hint=f"see {self.console}")
