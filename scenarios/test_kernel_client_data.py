"""cifs.ko and ksmbd: every way that data take, and that the same bytes arrive.

Small pieces travel in SMB-Direct messages, one or several; larger ones by RDMA into the memory that
the other side registered. Signed and sealed connections never use RDMA. Reads through the page
cache end in a queue of folios, others in the caller's memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pytest

from smbdirect_testbed.scenario import (
    Host,
    Ksmbd,
    Program,
    ServerKind,
    Transport,
    Wire,
    mounted,
)

pytestmark = [
    pytest.mark.needs(ServerKind.KSMBD, Transport.SMBDIRECT),
    pytest.mark.stands_on("test_kernel_client.py"),
]

_PROGRAM = Path(__file__).with_name("programs") / "kernel_files.py"
_THRESHOLD = 4096
"""Bytes from which cifs.ko uses RDMA: /proc/fs/cifs/rdma_readwrite_threshold."""
_PAYLOAD = 1364 - 24
"""Bytes of an SMB-Direct message without its header, by cifs.ko's and ksmbd's defaults."""
_SIZES = [
    *(1, _PAYLOAD, _PAYLOAD + 1, 3000, _THRESHOLD - 1, _THRESHOLD, _THRESHOLD + 1),
    *(3 * 4096 - 7, 65537, (256 << 10) + 1),
]
_SIGNED_SIZES = [1, _PAYLOAD + 1, _THRESHOLD, 65537, 400_000]
"""The largest is more than one frame of SMB-Direct can be, by both sides' defaults."""
_TOGETHER = 16
_SEALED_SIZE = 65536
"""Bytes of reads and writes of a sealed mount: longer ones fail, see docs/upstream-bugs.md."""
_SECRET = b"this is for the two of us alone "
_ROUNDS = 2
_LEAKED_KB = 600
"""What is more than noise, after ``_ROUNDS`` of two thousand messages."""
_OPTIONS = "cache=strict"


class Share:
    """A mounted share, and the program that writes and reads files in it, and behind it."""

    def __init__(self, client: Host, ksmbd: Ksmbd, mount: PurePosixPath) -> None:
        self._program = Program(_PROGRAM, client, ksmbd.host)
        self._mount = mount
        self._behind = ksmbd.share_directory

    def here(self, action: str, name: str, *options: object) -> dict[str, str] | None:
        """Do something in the mounted share."""
        return self._do(self._program.client, self._mount, action, name, options)

    def behind(self, action: str, name: str, *options: object) -> dict[str, str] | None:
        """Do something in the directory that the server shares."""
        return self._do(self._program.server, self._behind, action, name, options)

    def remove(self, pattern: str) -> None:
        """Remove files behind the server."""
        self._program.server.run(["sh", "-c", f'cd "$0" && rm {pattern}', str(self._behind)])

    def _do(
        self, host: Host, where: PurePosixPath, action: str, name: str, options: tuple[object, ...]
    ) -> dict[str, str] | None:
        argv = self._program.argv(host, action, where, name, *options)
        said: dict[str, str] | None = json.loads(host.run(argv, timeout=60).stdout)
        return said


def _mount_options(*options: str, version: str = "3.1.1") -> str:
    return ",".join([f"vers={version}", _OPTIONS, *options])


@contextmanager
def _share(client: Host, ksmbd: Ksmbd, *options: str, version: str = "3.1.1") -> Iterator[Share]:
    chosen = _mount_options(*options, version=version)
    with mounted(client, ksmbd, Transport.SMBDIRECT, options=chosen) as mount:
        yield Share(client, ksmbd, mount)


def _both_ways(share: Share, sizes: list[int]) -> None:
    """Write files here and read them behind the server; and the other way round."""
    share.here("make", "w", "--sizes", *sizes, "--mounted")
    assert share.behind("verify", "w", "--sizes", *sizes) == {}
    share.behind("make", "r", "--sizes", *sizes, "--seed", 1)
    assert share.here("verify", "r", "--sizes", *sizes, "--seed", 1, "--mounted") == {}
    share.remove("[rw]-*")


@pytest.mark.thorough
def test_sizes(client: Host, ksmbd: Ksmbd, wire: Wire) -> None:
    """Sizes around every border: of a message, of a page, and from which RDMA is used."""
    with _share(client, ksmbd) as share:
        _both_ways(share, _SIZES)
    wire.expect(Transport.SMBDIRECT)


@pytest.mark.thorough
def test_signed(client: Host, ksmbd: Ksmbd, wire: Wire) -> None:
    """All of it in messages, as large as both sides agreed on."""
    with _share(client, ksmbd, "sign") as share:
        _both_ways(share, _SIGNED_SIZES)
    wire.expect(Transport.SMBDIRECT)


def test_old_version(client: Host, ksmbd: Ksmbd, wire: Wire) -> None:
    """In SMB 3.0, the client itself takes back what it registered, and not the server for it."""
    with _share(client, ksmbd, version="3.0") as share:
        _both_ways(share, [_THRESHOLD, 65537])
    wire.expect(Transport.SMBDIRECT)


@pytest.mark.thorough
def test_many_at_once(client: Host, ksmbd: Ksmbd, wire: Wire) -> None:
    """More transfers than a connection has registrations, and, signed, than it has credits."""
    for options in ([], ["sign"]):
        with _share(client, ksmbd, *options) as share:
            several = ["--threads", _TOGETHER, "--sizes", 64 << 10]
            assert share.here("together", "many", *several) == {}
            share.remove("many-*")
    wire.expect(Transport.SMBDIRECT)


def test_sealed(client: Host, ksmbd: Ksmbd, wire: Wire, scenario_log: Path) -> None:
    """Nobody on the way can read what a sealed connection carries; others anyone can."""
    secret = scenario_log / "secret"
    secret.write_bytes(_SECRET * (_SEALED_SIZE // len(_SECRET)))
    here = PurePosixPath("/run/kernel-client-secret")
    client.run(["sh", "-c", 'cat >"$0"', str(here)], input=secret.read_bytes())
    sizes = f"rsize={_SEALED_SIZE},wsize={_SEALED_SIZE}"
    for options, in_clear in ((["seal", sizes], False), ([sizes], True)):
        chosen = _mount_options(*options)
        with mounted(client, ksmbd, Transport.SMBDIRECT, options=chosen) as mount:
            copy = ["dd", "bs=64k", f"if={here}", f"of={mount}/secret", "oflag=direct"]
            client.run(copy, timeout=60)
            back = ["dd", "bs=64k", f"if={mount}/secret", "iflag=direct", "of=/dev/null"]
            client.run(back, timeout=60)
        arrived = ksmbd.host.testinfra.file(str(ksmbd.share_directory / "secret"))
        assert arrived.content == secret.read_bytes()
        assert wire.shows(_SECRET) is in_clear, options
    client.run(["rm", str(here)])
    ksmbd.host.run(["rm", str(ksmbd.share_directory / "secret")])
    wire.expect(Transport.SMBDIRECT)


@pytest.mark.thorough
def test_rdma_is_announced(client: Host, ksmbd: Ksmbd) -> None:
    """A client that asks for several channels is told that the server's interface can do RDMA."""
    options = _mount_options("multichannel", "max_channels=2")
    with mounted(client, ksmbd, Transport.SMBDIRECT, options=options):
        told = client.run(["cat", "/proc/fs/cifs/DebugData"]).stdout
    address = re.escape(str(ksmbd.host.end_towards(client).ipv4.ip))
    interface = re.search(rf"Capabilities: (.*)\n\s*IPv4: {address}\n", told)
    assert interface, told
    assert "rdma" in interface[1].split()


@pytest.mark.thorough
def test_memory(client: Host, ksmbd: Ksmbd, scenario_log: Path) -> None:
    """Thousands of messages and some transfers, and there is as much memory as before."""
    machines = {client.machine, ksmbd.host.machine}

    def copy(source: object, target: object, *options: str) -> None:
        copy = ["dd", f"if={source}", f"of={target}", "bs=1M", "count=2", *options]
        client.run(copy, timeout=60)

    def use() -> list[int]:
        for options in (["sign"], []):
            chosen = _mount_options(*options)
            with mounted(client, ksmbd, Transport.SMBDIRECT, options=chosen) as mount:
                copy("/dev/zero", mount / "memory", "oflag=direct")
                copy(mount / "memory", "/dev/null", "iflag=direct")
        ksmbd.host.run(["rm", str(ksmbd.share_directory / "memory")])
        return [machine.unreclaimable_memory() >> 10 for machine in machines]

    used = [use() for _ in range(1 + _ROUNDS)]
    (scenario_log / "memory.log").write_text("".join(f"{kilobytes} kB\n" for kilobytes in used))
    grown = [after - before for before, after in zip(used[0], used[-1], strict=True)]
    assert max(grown) < _LEAKED_KB, f"{grown} kB more than after the first round"
