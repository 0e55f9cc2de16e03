"""The kernel's SMB client: a share mounted in a host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from smbdirect_testbed.config.spec import Transport
from smbdirect_testbed.machine.host import Host
from smbdirect_testbed.smb.server import SmbServer

_TIMEOUT = 60
"""Seconds for a mount; cifs.ko itself gives up an RDMA connection after 5 to 10."""


@contextmanager
def mounted(
    client: Host, server: SmbServer, transport: Transport, *, options: str = "vers=3.1.1"
) -> Iterator[PurePosixPath]:
    """Mount a server's share in a client while the context lasts; yield where.

    ::

        with mounted(client, ksmbd, Transport.SMBDIRECT, options="vers=3.1.1,cache=none") as share:
            client.run(["cp", "/etc/hosts", f"{share}/hosts"])

    :param options: further options of mount.cifs(8)
    :raises CommandFailed: mount or umount failed
    """
    where = PurePosixPath(f"/mnt/{server.kind}")
    account = server.account
    rdma = ["rdma"] if transport is Transport.SMBDIRECT else []
    all_options = [*rdma, options, f"username={account.user}", f"password={account.password}"]
    client.run(["mkdir", "-p", str(where)])
    client.run(
        ["mount", "-t", "cifs", "-o", ",".join(all_options), server.unc(client), str(where)],
        timeout=_TIMEOUT,
    )
    try:
        yield where
    finally:
        if not client.machine.death():
            client.run(["umount", str(where)], timeout=_TIMEOUT)
