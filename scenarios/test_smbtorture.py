"""Suites of smbtorture over TCP and over SMB-Direct; each of their tests is a result of its own."""

from __future__ import annotations

import pytest

from smbdirect_testbed.scenario import ServerKind, Torture, Transport, Wire

pytestmark = [
    pytest.mark.needs(ServerKind.SMBD),
    pytest.mark.stands_on("test_socket.py", "test_echo.py"),
]

_TRANSPORTS = [Transport.TCP, Transport.SMBDIRECT]

# smb2.credits keeps thousands of requests under way: in an emulated machine that is a minute for
# skipped_mid, and half a minute for each test of asynchronous credits.
_QUICK = {
    "smb2.connect": [],
    "smb2.read": [],
    "smb2.rw": [],
    "smb2.lock": [],
    "smb2.create": [],
    "smb2.credits": ["session_setup_credits_granted", "single_req_credits_granted"],
}
_CROWDED = {"smb2.create": ["mkdir-visible"]}
_SLOW = {
    "smb2.credits": [
        "skipped_mid",
        "ipc_max_data_zero",
        "1conn_ipc_max_async_credits",
        "2conn_ipc_max_async_credits",
        "multichannel_ipc_max_async_credits",
        "1conn_notify_max_async_credits",
        "2conn_notify_max_async_credits",
        "multichannel_max_async_credits",
    ]
}


@pytest.mark.parametrize("suite", _QUICK)
@pytest.mark.parametrize("transport", _TRANSPORTS)
def test_suite(torture: Torture, wire: Wire, suite: str, transport: Transport) -> None:
    torture.run(suite, transport, tests=_QUICK[suite], crowded=_CROWDED.get(suite, []))
    wire.expect(transport)


@pytest.mark.thorough
@pytest.mark.parametrize("suite", _SLOW)
@pytest.mark.parametrize("transport", _TRANSPORTS)
def test_slow_tests_of_suite(
    torture: Torture, wire: Wire, suite: str, transport: Transport
) -> None:
    """Two minutes each in an emulated machine: they keep hundreds of requests under way."""
    torture.run(suite, transport, tests=_SLOW[suite], timeout=900)
    wire.expect(transport)
