"""The testbed's side of :mod:`smbdirect_testbed.agent`: each request is a method."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.process import CommandResult
from smbdirect_testbed.lib.untrusted import Unsafe
from smbdirect_testbed.machine.agent_channel import TIMEOUT, AgentChannel, AgentMachine, NoAnswer
from smbdirect_testbed.machine.agent_connection import Connection
from smbdirect_testbed.machine.agent_program import DIRECTORY

if TYPE_CHECKING:
    from smbdirect_testbed.agent.requests import Counted, Link, LinkEnd, LinkShape, RdmaLink

_GRACE = 10.0
"""Seconds after a command's deadline for the agent to say so."""
_OUTPUT_NAME = re.compile(r"\w[\w.]*")
_LARGEST_OUTPUT = 256 << 20
"""Bytes that a command may print."""
_UNMAKE = (90.0, 5.0)
"""Seconds to unmake all hosts, and for each of them: an emulated machine takes seconds for one when
there are dozens."""


class AgentClient:
    """Has the agent in a machine do things; safe to use from several threads.

    All methods raise :class:`ProvisionError` when the agent failed, with its reason, and
    :class:`MachineDied` when the machine stopped running::

        with running_agent(machine) as agent:
            pids = agent.make_hosts(namespaces=["client"], machine_stack=[])
            agent.run(["hostname"], timeout=10, namespaces_of=pids["client"]).stdout

    :param started: the agent runs already
    """

    def __init__(self, machine: AgentMachine, connection: Connection, *, started: bool) -> None:
        self._machine = machine
        self._channel = AgentChannel(machine, connection, started=started)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def wait_ready(self, watch: Callable[[], None], *, timeout: float, interval: float) -> bool:
        """Wait until the agent has started; see :meth:`AgentChannel.wait_ready`."""
        return self._channel.wait_ready(watch, timeout=timeout, interval=interval)

    def make_hosts(
        self, *, namespaces: Sequence[str], machine_stack: Sequence[str]
    ) -> dict[str, int]:
        """Make hosts; what was made before stays.

        :param namespaces: names of hosts with namespaces of their own
        :param machine_stack: names of hosts that are the machine's own network stack
        :returns: by name, the process to enter each host by; 0 for the machine's own stack
        """
        made: dict[str, int] = self._ask(
            "make_hosts", namespaces=list(namespaces), machine_stack=list(machine_stack)
        )
        return made

    def make_links(self, links: Sequence[Link]) -> None:
        """Join hosts of this machine in pairs."""
        self._ask("make_links", links=list(links))

    def place_machine_link(self, end: LinkEnd, peer: LinkEnd, shape: LinkShape) -> None:
        """Give a host its end of a link to another machine: an interface that is there already."""
        self._ask("place_machine_link", end=end, peer=peer, **shape)

    def make_rdma_links(self, links: Sequence[RdmaLink]) -> None:
        """Put RDMA links on interfaces; returns when all are active and have their addresses."""
        self._ask("make_rdma_links", links=list(links))

    def unmake(self, hosts: int) -> None:
        """Remove all RDMA links, links and hosts.

        :param hosts: how many there are
        """
        least, each = _UNMAKE
        self._ask("unmake", timeout=least + each * hosts)

    def load_modules(
        self,
        *,
        needed: Sequence[str],
        offered: PurePosixPath,
        directory: PurePosixPath,
        ours: Sequence[str],
    ) -> dict[str, str]:
        """Load modules that are not loaded.

        :param needed: names of the kernel's own; with those that they depend on
        :param offered: a directory of the machine with the driver
        :param directory: gets a copy of that, unless it is there
        :param ours: names of modules in it, in the order to load them
        :returns: by name, the notes with the build ids of ours in hexadecimal
        """
        notes: dict[str, str] = self._ask(
            "load_modules",
            needed=list(needed),
            offered=str(offered),
            directory=str(directory),
            ours=list(ours),
        )
        return notes

    def start_capture(
        self,
        *,
        namespaces_of: int,
        devices: Sequence[str],
        file: PurePosixPath,
        ring: int,
        pause: float,
    ) -> None:
        """Capture what goes over interfaces from now on, unless that is done already.

        :param file: of the machine; gets the capture as soon as the file is there
        :param ring: KiB for packets that tcpdump has not read yet
        :param pause: seconds between small writes
        """
        self._ask(
            "start_capture",
            namespaces_of=namespaces_of,
            devices=list(devices),
            file=str(file),
            ring=ring,
            pause=pause,
        )

    def require_capture(self) -> None:
        """Raise :class:`ProvisionError` if tcpdump has ended."""
        self._ask("require_capture")

    def mark_capture(
        self,
        *,
        namespaces_of: int,
        label: str,
        addresses: Sequence[str],
        rdma_links: Sequence[str],
    ) -> Counted:
        """Send a marker to each address, by a link of its own, and read the host's counters."""
        counted: Counted = self._ask(
            "mark_capture",
            namespaces_of=namespaces_of,
            label=label,
            addresses=list(addresses),
            rdma_links=list(rdma_links),
        )
        return counted

    def end_capture(self) -> str:
        """End the capture, if there is one; returns what tcpdump said."""
        said: str = self._ask("end_capture")
        return said

    def take_census(self, hosts: Mapping[str, int], modules: Sequence[str]) -> dict[str, int]:
        """Count what there is that may be left behind: interfaces, mounts, RDMA resources, ...

        :param hosts: by name, the process to enter each by; 0 for the machine's own stack
        :param modules: kernel modules whose users are counted
        :returns: numbers by what is counted: ``qp of RDMA link rxe_client0``
        """
        found: dict[str, int] = self._ask("take_census", holders=dict(hosts), modules=list(modules))
        return found

    def freeze(self) -> None:
        """Let go of what belongs to this machine alone, so that it can become a template."""
        self._ask("freeze")

    def thaw(self, *, time_now: float, entropy: str, mac: str, keys: Mapping[str, str]) -> None:
        """Become a machine of its own, after having been a copy of a template.

        :param time_now: seconds since the epoch
        :param entropy: random bytes, in hexadecimal
        :param mac: the address for the interface that ssh comes by
        :param keys: files for sshd: names and contents
        """
        self._ask("thaw", time_now=time_now, entropy=entropy, mac=mac, keys=dict(keys))

    def run(
        self,
        command: Sequence[str],
        *,
        input: str | bytes | None = None,
        timeout: float,
        namespaces_of: int = 0,
    ) -> CommandResult:
        """Run a command to its end, with any status; see :meth:`Machine.run`.

        :raises CommandFailed: the deadline passed; it was killed with all that it had started
        """
        there = self._machine.shared.path_there(self._channel.files)
        arguments: dict[str, Any] = {
            "argv": list(command),
            "timeout": timeout,
            "outputs": str(there),
        }
        if namespaces_of:
            arguments["namespaces_of"] = namespaces_of
        if input is not None:
            data = input.encode() if isinstance(input, str) else input
            arguments["input"] = data.decode("latin-1")
        try:
            answer = self._channel.ask("run", arguments, timeout=timeout + _GRACE)
        except NoAnswer:
            raise CommandFailed(command, None, "") from None
        out, err = self._output(answer, "out"), self._output(answer, "err")
        if answer["status"] is None:
            raise CommandFailed(command, None, out + err)
        return CommandResult(tuple(command), answer["status"], out, err)

    def _output(self, answer: dict[str, Any], name: str) -> str:
        if f"{name}_file" not in answer:
            data = str(answer[name]).encode("latin-1")
        else:
            file_name = str(answer[f"{name}_file"])
            data = self._take_output(file_name)
        return data.decode(errors="replace")

    def _take_output(self, name: str) -> bytes:
        """Read and remove a file that the agent made for what a command printed."""
        files, file = self._machine.shared.files, f"{DIRECTORY}/{name}"
        try:
            if not _OUTPUT_NAME.fullmatch(name):
                raise Unsafe(file)
            data = files.read(file, most=_LARGEST_OUTPUT)
        except (Unsafe, FileNotFoundError) as e:
            # Only a broken or hostile machine names a file of this computer.
            raise ProvisionError(
                f"the agent in machine {self._machine.name} named a file that is not its own:"
                f" {name!r}",
                hint=e.message if isinstance(e, Unsafe) else None,
            ) from None
        files.remove(file)
        return data

    def _ask(self, do: str, *, timeout: float = TIMEOUT, **arguments: Any) -> Any:
        return self._channel.ask(do, arguments, timeout=timeout)
