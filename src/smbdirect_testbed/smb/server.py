"""An SMB server on a host: what clients need to know of it, and its life."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from smbdirect_testbed.config.spec import ServerKind, Transport
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.untrusted import UntrustedDirectory
from smbdirect_testbed.machine.host import Host
from smbdirect_testbed.smb.transports import SambaTransports

S = TypeVar("S", bound="SmbServer")

_LOG_END = 1 << 16
"""Bytes of a log that are looked at for its last lines."""


@dataclass(frozen=True)
class Account:
    """A user of an SMB server.

    :param nt_hash: MD4 of the password in UTF-16, in hexadecimal: what servers store
    """

    user: str
    password: str
    nt_hash: str


TESTER = Account("tester", "password", "8846F7EAEE8FB117AD06BDD830B7586C")
"""The image's user. There is nothing to protect: it can be reached over the links only."""


class SmbServer(ABC):
    """An SMB server on a host.

    ::

        with smbd.stopped():
            assert not server.testinfra.process.filter(comm="smbd")

    :param share_directory: the share's directory in the machine
    :param logs: where its logs are, on this computer
    :param transports: what it listens on while it runs
    :param samba: how Samba in its machine, servers and clients, is told a transport
    """

    kind: ServerKind
    share = "share"
    account = TESTER

    def __init__(
        self,
        host: Host,
        transports: Sequence[Transport],
        share_directory: PurePosixPath,
        logs: Path,
        samba: SambaTransports,
    ) -> None:
        self.host = host
        self.transports = tuple(transports)
        self.share_directory = share_directory
        self.logs = logs
        self.samba = samba

    def address(
        self, client: Host | None = None, *, ipv6: bool = False
    ) -> IPv4Address | IPv6Address:
        """The address at which a client reaches it; without one, that of its first link."""
        end = self.host.end_towards(client) if client else self.host.ends[0]
        return end.ipv6.ip if ipv6 else end.ipv4.ip

    def unc(self, client: Host | None = None, *, ipv6: bool = False) -> str:
        """The share as a client names it: ``//10.7.0.1/share``."""
        return f"//{self.address(client, ipv6=ipv6)}/{self.share}"

    @abstractmethod
    def start(self) -> None:
        """Start it and wait until it listens on all of its transports.

        :raises ProvisionError: it ended, or did not listen in time; with the end of its log
        """

    def start_for_template(self) -> None:
        """Start it in a machine that becomes a template; for those that can be in one.

        :raises ProvisionError: as :meth:`start`
        """
        self.start()

    def adopt(self) -> bool:
        """Take over the one that came with the machine's template; false if it does not run."""
        return False

    @abstractmethod
    def stop(self) -> None:
        """Stop it and wait until all of its processes are gone. Harmless when repeated."""

    @abstractmethod
    def running(self) -> bool:
        """Whether its main process lives."""

    def _run_start(self, script: Sequence[str], config: str, *, timeout: float) -> None:
        """Run the script that starts it and waits until it listens.

        :param config: the script's standard input
        :raises ProvisionError: the script failed, with what it said and the end of the log
        """
        started = self.host.run(script, input=config, timeout=timeout, check=False)
        if not started.ok:
            why = started.output.strip() or "did not start"
            self.stop()
            raise ProvisionError(
                f"{self.kind} on {self.host.name} {why}",
                hint=f"its logs are in {self.logs}",
                detail=self.log_end(),
            )

    def check(self) -> None:
        """Raise :class:`ProvisionError` with the end of its log, unless it runs."""
        if not self.running():
            self.host.machine.raise_if_dead()
            raise ProvisionError(
                f"{self.kind} on {self.host.name} no longer runs",
                hint=f"its logs are in {self.logs}",
                detail=self.log_end(),
            )

    def make_log_directory(self) -> None:
        """Make the directory for its logs, which the machine writes."""
        UntrustedDirectory(self.logs.parent).make_directory(self.logs.name)

    def log_end(self, lines: int = 20) -> str:
        """The last lines of the log that was written to last."""
        files, logs = UntrustedDirectory(self.logs.parent), self.logs.name

        def written(name: str) -> float:
            found = files.status(PurePath(logs, name))
            return found.st_mtime if found else 0.0

        newest = max(files.names(logs), key=written, default=None)
        if newest is None:
            return "it left no log"
        end = files.read_end(PurePath(logs, newest), most=_LOG_END).decode(errors="replace")
        return "\n".join([f"{newest}:", *end.rstrip().splitlines()[-lines:]])

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Have it stopped while the context lasts."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def offering(self, *transports: Transport) -> Iterator[None]:
        """Have it listen on these transports only while the context lasts."""
        usual = self.transports
        self.stop()
        try:
            self.transports = transports
            self.start()
            yield
        finally:
            self.stop()
            self.transports = usual
            self.start()


@contextmanager
def running(server: S) -> Iterator[S]:
    """Have a server running while the context lasts, maybe the one of the machine's template.

    :raises ProvisionError: it did not start, with the end of its log
    """
    prepared = server.host.machine.prepared.get(_prepared_key(server))
    if not (prepared and server.adopt()):
        server.start()
    try:
        yield server
    finally:
        if not server.host.machine.death():
            server.stop()


def prepare(server: SmbServer) -> dict[str, str]:
    """Start a server in a machine that becomes a template; :func:`running` finds it in clones.

    :returns: what a clone's :attr:`Machine.prepared` has to say for that
    """
    server.start_for_template()
    return {_prepared_key(server): "yes"}


def _prepared_key(server: SmbServer) -> str:
    return f"{server.kind} {server.host.name}"
