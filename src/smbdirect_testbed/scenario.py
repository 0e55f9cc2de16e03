"""What scenarios import: everything that they may use besides fixtures, and nothing else.

``docs/scenarios.md`` shows each name with its example. The modules behind it may change.
"""

from __future__ import annotations

from smbdirect_testbed.config import ports as _ports
from smbdirect_testbed.config.spec import LinkSpec, RdmaType, Role, ServerKind, Transport
from smbdirect_testbed.echo import connection as _echo_connection
from smbdirect_testbed.echo.pack import pack as pack_echo
from smbdirect_testbed.environment.environment import Environment
from smbdirect_testbed.evidence.capture import Moment, TransportNotProven, Wire
from smbdirect_testbed.kernel import built_driver as _built_driver
from smbdirect_testbed.lib.errors import CommandFailed, MachineDied, ProvisionError, TestbedError
from smbdirect_testbed.lib.process import CommandResult
from smbdirect_testbed.lib.wait import wait_until
from smbdirect_testbed.machine.guest_program import Program
from smbdirect_testbed.machine.host import Host, HostEnd
from smbdirect_testbed.machine.loaded_driver import LoadedDriver
from smbdirect_testbed.machine.machine import Machine
from smbdirect_testbed.plugin.smbtorture import Torture, TortureFailed
from smbdirect_testbed.plugin.subtests import report_subtest
from smbdirect_testbed.results.knownfail import Expectations
from smbdirect_testbed.results.results import Outcome
from smbdirect_testbed.results.subtests import Subtest
from smbdirect_testbed.smb import ksmbd as _ksmbd
from smbdirect_testbed.smb.ksmbd import Ksmbd, running_ksmbd
from smbdirect_testbed.smb.mount import mounted
from smbdirect_testbed.smb.server import SmbServer
from smbdirect_testbed.smb.smbclient import SmbClient
from smbdirect_testbed.smb.smbd import Smbd

__all__ = [
    "ECHO_PORTS",
    "LIBRARY",
    "PORTS",
    "RDMA_PORTS",
    "WEAK_DEVICE",
    "CommandFailed",
    "CommandResult",
    "Environment",
    "Expectations",
    "Host",
    "HostEnd",
    "Ksmbd",
    "LinkSpec",
    "LoadedDriver",
    "Machine",
    "MachineDied",
    "Moment",
    "Outcome",
    "Program",
    "ProvisionError",
    "RdmaType",
    "Role",
    "ServerKind",
    "SmbClient",
    "SmbServer",
    "Smbd",
    "Subtest",
    "TestbedError",
    "Torture",
    "TortureFailed",
    "Transport",
    "TransportNotProven",
    "Wire",
    "mounted",
    "pack_echo",
    "report_subtest",
    "running_ksmbd",
    "wait_until",
]

ECHO_PORTS = _echo_connection.DEFAULT_PORTS
"""Where the echo suite's server listens unless told otherwise, by transport.

::

    port = ECHO_PORTS["smbdirect"]
"""
LIBRARY = _built_driver.LIBRARY
"""The file of libsmbdirect, for programs that know about SMB-Direct sockets.

::

    library = driver.directory / LIBRARY
"""
PORTS = _ports.PORTS
"""Where Samba's smbd listens, by transport.

::

    address = f"tcp://{server.ipv4}:{PORTS[Transport.TCP]}"
    assert server.testinfra.socket(address).is_listening
"""
RDMA_PORTS = _ksmbd.RDMA_PORTS
"""Where ksmbd listens for SMB-Direct, by the type of the RDMA link.

::

    if (rdma := client.end_towards(ksmbd.host).rdma) is not None:
        port = RDMA_PORTS[rdma]
"""
WEAK_DEVICE = _built_driver.WEAK_DEVICE
"""The file of a kernel module whose RDMA devices can do too little for SMB-Direct.

::

    module = driver.directory / WEAK_DEVICE
"""
