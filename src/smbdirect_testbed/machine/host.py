"""A host: a network stack with a role, and the commands that run in it."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import TYPE_CHECKING

from smbdirect_testbed.config.spec import RdmaType, Role
from smbdirect_testbed.lib import process
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.process import CommandResult
from smbdirect_testbed.machine.machine import Machine

if TYPE_CHECKING:
    import testinfra.host


@dataclass(frozen=True)
class HostEnd:
    """A host's end of a link, as it was made.

    ::

        end = server.end_towards(client)
        client.run(["ping", "-c1", str(end.ipv4.ip)])
        assert server.testinfra.interface(end.device).exists

    :param device: the network interface
    :param mac: its address; locally administered, fixed by the environment
    :param rdma: the type of its RDMA link, if it has one
    :param rdma_device: the RDMA link's name, unique in the machine
    :param peer: the name of the host at the other end
    """

    device: str
    mac: str
    ipv4: IPv4Interface
    ipv6: IPv6Interface
    rdma: RdmaType | None
    rdma_device: str | None
    peer: str


@dataclass(frozen=True)
class Host:
    """A network stack on a machine, and the commands that run in it.

    ::

        with server.background(["rping", "-s", "-a", str(server.ipv4)], scenario_log / "rping.log"):
            client.run(["rping", "-c", "-a", str(server.ipv4), "-C1"], timeout=20)

    :param pid: the process whose namespaces are the host's; 0 for the machine's own stack
    """

    name: str
    role: Role
    machine: Machine
    ends: tuple[HostEnd, ...]
    pid: int

    def end_towards(self, peer: Host) -> HostEnd:
        """This host's end of its link to ``peer``.

        :raises ProvisionError: there is no such link
        """
        for end in self.ends:
            if end.peer == peer.name:
                return end
        raise ProvisionError(f"there is no link between {self.name} and {peer.name}")

    @property
    def ipv4(self) -> IPv4Address:
        """The address of the first link's end."""
        return self.ends[0].ipv4.ip

    @property
    def ipv6(self) -> IPv6Address:
        """The address of the first link's end."""
        return self.ends[0].ipv6.ip

    @property
    def device(self) -> str:
        """The network interface of the first link's end."""
        return self.ends[0].device

    @property
    def rdma_device(self) -> str | None:
        """The RDMA link of the first link's end."""
        return self.ends[0].rdma_device

    def argv(self, command: Sequence[str], *, tty: bool = False) -> list[str]:
        """The argv that, run on this computer, runs ``command`` in this host."""
        return self.machine.argv(self.machine.inside(self.pid, command), tty=tty)

    def run(
        self,
        command: Sequence[str],
        *,
        input: str | bytes | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> CommandResult:
        """Run a command in this host to its end; see :meth:`Machine.run`."""
        return self.machine.run(
            command, input=input, timeout=timeout, check=check, namespaces_of=self.pid
        )

    @contextmanager
    def background(
        self, command: Sequence[str], log: Path, *, stop: str = "TERM", timeout: float = 15
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command while the context lasts; its output goes to ``log`` on this computer.

        The process yielded is the channel's: its exit status is the command's.

        :param stop: the signal the command gets at the end of the context
        :param timeout: seconds after which it is killed with all of its session
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        # What ends the command must reach it in the machine, and not only the channel here: the
        # shell leaves its process id, keeps it by exec, and leads a session of its own.
        pid_file = f"/run/background-{uuid.uuid4().hex}.pid"
        script = 'echo $$ >"$0"; exec "$@"'
        with log.open("ab") as out:
            proc = subprocess.Popen(
                self.argv(["setsid", "--wait", "sh", "-c", script, pid_file, *command]),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield proc
        finally:
            try:
                if proc.poll() is None and not self.machine.death():
                    self._stop(proc, pid_file, stop, timeout)
            finally:
                process.kill_group(proc)
                proc.wait()

    def _stop(
        self, proc: subprocess.Popen[bytes], pid_file: str, signal: str, timeout: float
    ) -> None:
        kill = 'p=$(cat "$0") && kill -"$1" "$p"'
        self.machine.run(["sh", "-c", kill, pid_file, signal], check=False)
        try:
            proc.wait(timeout)
        except subprocess.TimeoutExpired:
            kill_all = 'pkill -KILL --session "$(cat "$0")"'
            self.machine.run(["sh", "-c", kill_all, pid_file], check=False)

    @cached_property
    def testinfra(self) -> testinfra.host.Host:
        """This host for pytest-testinfra: files, processes, sockets, packages, interfaces.

        ::

            assert server.testinfra.socket(f"tcp://{server.ipv4}:445").is_listening
            assert server.testinfra.process.filter(comm="smbd")
        """
        # Not every scenario needs it, and its import takes time.
        from smbdirect_testbed.machine.testinfra_backend import testinfra_host

        return testinfra_host(self.name, self.run)
