"""Suites of smbtorture over TCP and over SMB-Direct; each of their tests is a result of its own."""

from __future__ import annotations

import pytest

from smbdirect_testbed.capture import Wire
from smbdirect_testbed.plugin.torture import Torture
from smbdirect_testbed.spec import ServerKind, Transport

pytestmark = pytest.mark.needs(ServerKind.SMBD)

SUITES = ["smb2.connect", "smb2.read", "smb2.rw", "smb2.lock", "smb2.create", "smb2.credits"]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("transport", [Transport.TCP, Transport.SMBDIRECT])
def test_suite(torture: Torture, wire: Wire, suite: str, transport: Transport) -> None:
    torture.run(suite, transport)
    wire.expect(transport)
