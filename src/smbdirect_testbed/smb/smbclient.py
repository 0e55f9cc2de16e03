"""smbclient: one connection to a share, some commands, done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from smbdirect_testbed.config.spec import Transport
from smbdirect_testbed.lib.process import CommandResult
from smbdirect_testbed.machine.host import Host
from smbdirect_testbed.smb.config import client_config
from smbdirect_testbed.smb.server import SmbServer

_NO_CONFIG = PurePosixPath("/dev/null")


@dataclass(frozen=True)
class SmbClient:
    """Samba's smbclient on a host, for one server.

    ::

        smbclient.run("put /etc/hosts hosts", "ls hosts", transports=[Transport.SMBDIRECT])
        assert not smbclient.run("ls", spelt="pigeon", check=False).ok

    :param host: where it runs
    """

    host: Host
    server: SmbServer

    def run(
        self,
        *commands: str,
        transports: Sequence[Transport] = (),
        spelt: str | None = None,
        config: PurePosixPath = _NO_CONFIG,
        ipv6: bool = False,
        timeout: float = 60,
        check: bool = True,
    ) -> CommandResult:
        """Connect to the server's share and run smbclient's commands.

        :param transports: the command-line option ``client smb transports``, in order of
            preference; without it the configuration decides
        :param spelt: that option as a user may have mistyped it, instead of ``transports``
        :param config: an smb.conf in the machine; the default says nothing
        :param timeout: seconds for all of it
        :raises CommandFailed: smbclient failed (with ``check``), or did not end in time
        """
        spelt = spelt or self.server.samba.spelt(transports)
        option = [f"--option=client smb transports={spelt}"] if spelt else []
        account = self.server.account
        return self.host.run(
            self.server.samba.command(
                [
                    "smbclient",
                    f"--configfile={config}",
                    f"--user={account.user}%{account.password}",
                    *option,
                    self.server.unc(self.host, ipv6=ipv6),
                    f"--command={'; '.join(commands)}",
                ]
            ),
            timeout=timeout,
            check=check,
        )

    def write_config(self, spelt: str, path: PurePosixPath) -> PurePosixPath:
        """Write a client's smb.conf into the machine.

        :param spelt: its ``client smb transports``
        """
        self.host.run(["sh", "-c", 'cat >"$0"', str(path)], input=client_config(spelt))
        return path
