"""The kernel on both sides: cifs.ko mounts ksmbd over SMB-Direct."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from smbdirect_testbed.scenario import Host, Ksmbd, ServerKind, Transport, Wire, mounted

pytestmark = [
    pytest.mark.needs(ServerKind.KSMBD, Transport.SMBDIRECT),
    pytest.mark.stands_on("test_rdma_link.py"),
]

_MEBIBYTES = 4


def _make_random(host: Host, path: PurePosixPath) -> str:
    """Make a file of random bytes; return its SHA-256."""
    script = 'head -c "$1" /dev/urandom >"$0" && sha256sum "$0"'
    size = str(_MEBIBYTES << 20)
    return host.run(["sh", "-c", script, str(path), size]).stdout.split()[0]


def _copy(host: Host, source: PurePosixPath, target: PurePosixPath, flag: str) -> None:
    """Copy with dd; ``flag`` (iflag=direct, oflag=direct) keeps one side out of the cache."""
    host.run(["dd", f"if={source}", f"of={target}", "bs=1M", flag], timeout=120)


def test_cifs_mounts_ksmbd_by_rdma(client: Host, ksmbd: Ksmbd, wire: Wire) -> None:
    """Random data both ways, the same at both ends, and all of it by RDMA."""
    with mounted(client, ksmbd, Transport.SMBDIRECT) as mount:
        mount_point = client.testinfra.mount_point(str(mount))
        assert mount_point.filesystem == "cifs"
        assert "rdma" in mount_point.options

        here = PurePosixPath("/run/kernel-client")
        written = _make_random(client, here)
        _copy(client, here, mount / "written", "oflag=direct")
        arrived = ksmbd.host.testinfra.file(str(ksmbd.share_directory / "written"))
        assert arrived.sha256sum == written

        there = _make_random(ksmbd.host, ksmbd.share_directory / "read")
        assert there != written
        _copy(client, mount / "read", here, "iflag=direct")
        assert client.testinfra.file(str(here)).sha256sum == there

        assert set(client.testinfra.file(str(mount)).listdir()) >= {"written", "read"}
    client.run(["rm", str(here)])
    ksmbd.host.run(
        ["rm", str(ksmbd.share_directory / "written"), str(ksmbd.share_directory / "read")]
    )
    wire.expect(Transport.SMBDIRECT)
