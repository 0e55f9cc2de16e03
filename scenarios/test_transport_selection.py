"""smbclient reaches smbd over the transport it was told, and over no other."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import pytest

from smbdirect_testbed.scenario import (
    PORTS,
    Host,
    ServerKind,
    SmbClient,
    SmbServer,
    Transport,
    TransportNotProven,
    Wire,
)

pytestmark = pytest.mark.stands_on("test_socket.py", "test_echo.py")

TCP, NBT, SMBDIRECT = Transport.TCP, Transport.NBT, Transport.SMBDIRECT
_SIZE = 20 << 20
_TRIES = 4
_COPY_TIMEOUT = 60
_DEADLINE = 15
"""Seconds in which a client without a server must have given up; Samba gives a connection 5."""


@dataclass(frozen=True)
class RandomFile:
    """A file of random bytes on the client.

    :param sha256: of its content
    """

    path: PurePosixPath
    sha256: str


@pytest.fixture(scope="module")
def original(client: Host) -> RandomFile:
    path = PurePosixPath("/run/original")
    make = 'head -c "$1" /dev/urandom >"$0"'
    client.run(["sh", "-c", make, str(path), str(_SIZE)])
    return RandomFile(path, client.testinfra.file(str(path)).sha256sum)


@pytest.mark.parametrize("transport", [TCP, NBT, SMBDIRECT])
def test_copy(
    client: Host,
    server: Host,
    smbd: SmbServer,
    smbclient: SmbClient,
    wire: Wire,
    original: RandomFile,
    transport: Transport,
) -> None:
    """List, put and get of 20 MiB: the same bytes at both ends, by that transport alone."""
    name = f"copy-{transport}-{secrets.token_hex(4)}"
    back = PurePosixPath(f"/run/{name}")
    listed = smbclient.run(
        f"put {original.path} {name}",
        f"ls {name}",
        f"get {name} {back}",
        transports=[transport],
        timeout=_COPY_TIMEOUT,
    )
    wire.expect(transport)
    assert f"{_SIZE} " in next(li for li in listed.stdout.splitlines() if li.split()[:1] == [name])
    stored = server.testinfra.file(str(smbd.share_directory / name))
    assert stored.user == smbd.account.user
    assert stored.sha256sum == original.sha256
    assert client.testinfra.file(str(back)).sha256sum == original.sha256
    server.run(["rm", stored.path])
    client.run(["rm", str(back)])


@pytest.mark.parametrize("transport", [TCP, SMBDIRECT])
def test_ipv6(smbclient: SmbClient, wire: Wire, transport: Transport) -> None:
    assert "blocks available" in smbclient.run("ls", transports=[transport], ipv6=True).stdout
    wire.expect(transport)


@pytest.mark.needs(ServerKind.SMBD, TCP)
def test_a_silent_fallback_is_noticed(smbclient: SmbClient, wire: Wire) -> None:
    """The proof itself: SMB over TCP must not pass for SMB-Direct."""
    smbclient.run("ls", transports=[TCP])
    with pytest.raises(TransportNotProven, match="SMB went over TCP"):
        wire.expect(SMBDIRECT)


@pytest.mark.parametrize("transports", [[SMBDIRECT, TCP], [TCP, SMBDIRECT]])
def test_prefers_the_first_of_the_list(
    smbclient: SmbClient, wire: Wire, transports: list[Transport]
) -> None:
    """Samba gives the first 5 ms before it starts the others, so a busy machine gets more tries."""
    for tries_left in reversed(range(_TRIES)):
        begin = wire.now()
        smbclient.run("ls", transports=transports)
        try:
            wire.expect(transports[0], since=begin)
        except TransportNotProven:
            if not tries_left:
                raise
        else:
            return


@pytest.mark.parametrize(("transport", "other"), [(TCP, SMBDIRECT), (SMBDIRECT, TCP)])
def test_option_and_configuration_agree(
    smbclient: SmbClient, wire: Wire, transport: Transport, other: Transport
) -> None:
    """``client smb transports`` in smb.conf and on the command line; the latter has precedence."""
    spelt = smbclient.server.samba.spelt([transport])
    config = smbclient.write_config(spelt, PurePosixPath(f"/run/client-{transport}.conf"))
    smbclient.run("ls", config=config)
    wire.expect(transport)
    begin = wire.now()
    smbclient.run("ls", config=config, transports=[other])
    wire.expect(other, since=begin)


@pytest.mark.parametrize("spelt", ["pigeon", "tcp, pigeon"])
def test_unknown_transport_is_an_error(smbclient: SmbClient, wire: Wire, spelt: str) -> None:
    """On the command line; nothing is sent."""
    refused = smbclient.run("ls", spelt=spelt, check=False)
    assert not refused.ok
    assert f"Error setting option 'client smb transports={spelt}'" in refused.output
    for transport in (TCP, NBT, SMBDIRECT):
        with pytest.raises(TransportNotProven):
            wire.expect(transport)


def test_unknown_transport_in_the_configuration_is_an_error(
    client: Host, smbclient: SmbClient
) -> None:
    config = smbclient.write_config("pigeon, tcp", PurePosixPath("/run/client-unknown.conf"))
    checked = client.run(["testparm", "--suppress-prompt", str(config)], check=False)
    assert not checked.ok
    assert "Error loading services" in checked.output
    used = smbclient.run("ls", config=config, check=False)
    assert f"Can't load {config}" in used.output


class TestServerWithoutSmbDirect:
    """What a client does when the server does not offer SMB-Direct."""

    @pytest.fixture(scope="class", autouse=True)
    def tcp_only(self, smbd: SmbServer) -> Iterator[None]:
        with smbd.offering(TCP, NBT):
            yield

    def test_falls_back_to_tcp(self, smbclient: SmbClient, wire: Wire) -> None:
        begin = wire.now()
        listed = smbclient.run("ls", transports=[SMBDIRECT, TCP], timeout=_DEADLINE)
        assert "blocks available" in listed.stdout
        wire.expect(TCP, since=begin)

    def test_smbdirect_alone_fails(self, smbclient: SmbClient, wire: Wire) -> None:
        """With a clear status, within its deadline, and without trying TCP, which is there."""
        server = smbclient.server.host
        address = smbclient.server.address(smbclient.host)
        assert server.testinfra.socket(f"tcp://{address}:{PORTS[TCP]}").is_listening
        begin = wire.now()
        failed = smbclient.run("ls", transports=[SMBDIRECT], timeout=_DEADLINE, check=False)
        assert not failed.ok
        assert "NT_STATUS_CONNECTION_REFUSED" in failed.output
        with pytest.raises(TransportNotProven, match="no TCP segment on ports 139, 445 and 5445"):
            wire.expect(SMBDIRECT, since=begin)
