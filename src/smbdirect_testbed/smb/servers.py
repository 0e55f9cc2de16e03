"""The SMB servers there are: one row each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smbdirect_testbed.config.kinds import ServerKind
from smbdirect_testbed.config.spec import Transport
from smbdirect_testbed.lib.errors import UsageError
from smbdirect_testbed.lib.extensions import extension, extension_names
from smbdirect_testbed.machine.host import Host
from smbdirect_testbed.smb.ksmbd import Ksmbd
from smbdirect_testbed.smb.server import SmbServer
from smbdirect_testbed.smb.smbd import Smbd
from smbdirect_testbed.smb.transports import SambaTransports

GROUP = "smbdirect_testbed.servers"
"""The entry points of other packages, each a :class:`ServerType`."""


@dataclass(frozen=True)
class ServerType:
    """A row: what makes a server, and when it may run::

        ServerType(Smbd, starts_with_environment=True, can_be_in_template=True)

    :param make: makes the server for a host, stopped: its class, as a rule
    :param starts_with_environment: it runs from the start; otherwise scenarios start it
    :param can_be_in_template: it goes on in a clone of the machine in which it was started; see
        :meth:`.SmbServer.adopt`
    :param needs_machine_stack: it listens in a machine's own network stack only
    """

    make: Callable[[Host, Sequence[Transport], SambaTransports], SmbServer]
    starts_with_environment: bool = False
    can_be_in_template: bool = False
    needs_machine_stack: bool = False

    @property
    def code(self) -> str:
        """The text of the module that has it: what a template holds depends on that."""
        return Path(sys.modules[self.make.__module__].__file__ or "").read_text()


SERVERS = {
    ServerKind.SMBD: ServerType(Smbd, starts_with_environment=True, can_be_in_template=True),
    ServerKind.KSMBD: ServerType(Ksmbd, needs_machine_stack=True),
}


def server_type(kind: ServerKind) -> ServerType:
    """The row of a server.

    :raises UsageError: there is none, or it cannot be imported
    """
    found = SERVERS.get(kind) or extension(GROUP, kind)
    if found is None:
        known = ", ".join(server_names())
        raise UsageError(f"there is no server {kind.value!r}", hint=f"there are: {known}")
    if not isinstance(found, ServerType):
        raise UsageError(f"server {kind}: {found!r} is no ServerType")
    return found


def server_names() -> list[str]:
    """The names of all servers there are, those of other packages too."""
    return sorted({*SERVERS, *extension_names(GROUP)})
