"""What several scenarios share."""

from __future__ import annotations

import pytest

from smbdirect_testbed.machine.host import Host
from smbdirect_testbed.smb.server import SmbServer
from smbdirect_testbed.smb.smbclient import SmbClient


@pytest.fixture(scope="session")
def smbclient(client: Host, smbd: SmbServer) -> SmbClient:
    """smbclient on the client, for smbd's share."""
    return SmbClient(client, smbd)
