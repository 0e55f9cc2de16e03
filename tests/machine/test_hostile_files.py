"""Links that a machine made in the directory it shares with this computer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, cast

import pytest

from smbdirect_testbed.evidence import capture, pcap
from smbdirect_testbed.lib.untrusted import Unsafe
from smbdirect_testbed.machine.agent_program import offer_agent
from smbdirect_testbed.machine.guest_program import Program
from smbdirect_testbed.machine.loaded_driver import LoadedDriver
from smbdirect_testbed.machine.shared_directory import SharedDirectory
from smbdirect_testbed.machine.ssh import make_keys
from smbdirect_testbed.plugin.server_logs import ServerLogs
from smbdirect_testbed.smb.server import SmbServer

_SECRET = "PRIVATE KEY"


class Hostile:
    """A machine that has replaced all files and directories below its shared directory by links.

    :param precious: files of this computer's
    """

    def __init__(self, directory: Path) -> None:
        self.here = directory / "shared"
        self.here.mkdir()
        self.precious = directory / "precious"
        self.precious.mkdir()
        shared = SharedDirectory(self.here, PurePosixPath("/testbed"))
        agent = SimpleNamespace(start_capture=lambda **_: None, end_capture=lambda: "")
        self.machine = cast(
            Any,
            SimpleNamespace(
                shared=shared,
                prepared={},
                accelerator="uml",
                required_agent=lambda: agent,
                death=lambda: None,
            ),
        )

    def link(self, name: str) -> None:
        """Have a name of a file lead to one of this computer's."""
        target = self.precious / PurePosixPath(name).name
        target.write_text(_SECRET)
        (self.here / name).parent.mkdir(parents=True, exist_ok=True)
        (self.here / name).symlink_to(target)

    def link_directory(self, name: str) -> None:
        """Have a name of a directory lead to one of this computer's."""
        (self.here / name).symlink_to(self.precious)

    def unchanged(self) -> bool:
        """Whether nothing of this computer's was written to or removed, and nothing is new."""
        return all(f.is_file() and f.read_text() == _SECRET for f in self.precious.iterdir())


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    return Hostile(tmp_path)


def _program(hostile: Hostile, ours: Path) -> None:
    host = cast(Any, SimpleNamespace(machine=hostile.machine))
    Program(ours / "file", host, host).argv(host)


def _driver(hostile: Hostile, ours: Path) -> None:
    built = cast(Any, SimpleNamespace(directory=ours, digest="1"))
    LoadedDriver(hostile.machine, built)


def _capture(hostile: Hostile, ours: Path) -> None:
    client = cast(Any, SimpleNamespace(machine=hostile.machine, ends=(), pid=0, name="client"))
    with capture.capturing(client, {}, ours / "tcpdump.log"):
        pass


_WRITES: dict[str, tuple[str, Callable[[Hostile, Path], object]]] = {
    "program": ("file", _program),
    "module of a program": ("smbdirect.py", _program),
    "driver": ("driver/file", _driver),
    "capture": ("capture.pcap", _capture),
    "agent": ("agent/agent.pyz", lambda hostile, _: offer_agent(hostile.here, None)),
    "keys": ("ssh/authorized_keys", lambda hostile, ours: make_keys(ours / "k", hostile.here)),
}


@pytest.mark.parametrize("what", _WRITES)
def test_nothing_is_written_through_a_link(hostile: Hostile, tmp_path: Path, what: str) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "file").write_text("ours")
    name, write = _WRITES[what]
    hostile.link(name)
    write(hostile, ours)
    assert hostile.unchanged()
    assert not (hostile.here / name).is_symlink()


@pytest.mark.parametrize("what", ["driver", "agent", "keys"])
def test_nothing_is_written_below_a_link(hostile: Hostile, tmp_path: Path, what: str) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "file").write_text("ours")
    name, write = _WRITES[what]
    hostile.link_directory(str(PurePosixPath(name).parent))
    write(hostile, ours)
    assert hostile.unchanged()


def _server(hostile: Hostile) -> SmbServer:
    logs = hostile.here / "smbd-server"
    return cast(SmbServer, SimpleNamespace(logs=logs, kind="smbd"))


@pytest.mark.parametrize("whole", [False, True])
def test_logs_do_not_show_files_of_this_computer(
    hostile: Hostile, tmp_path: Path, whole: bool
) -> None:
    server = _server(hostile)
    hostile.link("smbd-server/stolen" if not whole else "other")
    if whole:
        hostile.link_directory("smbd-server")
    else:
        (server.logs / "log.smbd").write_text("its log")
    kept = ServerLogs()
    kept.cut([server], tmp_path / "scenario")
    kept.keep(tmp_path / "all")
    for directory in ("scenario", "all"):
        texts = [f.read_text() for f in (tmp_path / directory).rglob("*") if f.is_file()]
        assert texts == ([] if whole else ["its log"])
    if not whole:
        assert SmbServer.log_end(server) == "log.smbd:\nits log"


def test_a_capture_that_became_a_link_is_not_read(hostile: Hostile) -> None:
    hostile.link("capture.pcap")
    with pytest.raises(Unsafe, match=r"capture\.pcap is a link"):
        pcap.GrowingPcap(hostile.here / "capture.pcap").take()
