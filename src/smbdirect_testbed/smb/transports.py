"""How a transport is spelt for Samba.

A Samba that knows the transport ``smbdirect`` is told just that. Stock Samba is told
``tcp:5445`` and runs under the preload library, which makes sockets of that port SMB-Direct.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from smbdirect_testbed.config.ports import PORTS
from smbdirect_testbed.config.spec import Transport
from smbdirect_testbed.machine.machine import Machine


@dataclass(frozen=True)
class SambaTransports:
    """The transports that a machine's Samba understands.

    :param launcher: ``smbdirect-run`` in the machine; None if Samba itself knows ``smbdirect``
    """

    launcher: PurePosixPath | None

    @property
    def native(self) -> bool:
        """Whether Samba knows the transport ``smbdirect`` without help."""
        return self.launcher is None

    def spelt(self, transports: Sequence[Transport]) -> str:
        """The value of ``client smb transports`` or ``server smb transports``."""
        return ", ".join(self._one(t) for t in transports)

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that runs a program of Samba with SMB-Direct."""
        return [*([str(self.launcher)] if self.launcher else []), *command]

    def _one(self, transport: Transport) -> str:
        if transport is Transport.SMBDIRECT and not self.native:
            return f"tcp:{PORTS[transport]}"
        return transport.value


def samba_transports(machine: Machine, launcher: PurePosixPath) -> SambaTransports:
    """Find out what Samba in a machine understands; it refuses unknown transports."""
    asked = machine.run(
        ["testparm", "--suppress-prompt", "--option=client smb transports=smbdirect", "/dev/null"],
        check=False,
    )
    return SambaTransports(None if asked.ok else launcher)
