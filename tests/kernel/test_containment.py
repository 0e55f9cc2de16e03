"""What a build can reach: by namespaces, and where a container does not permit these."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest

from smbdirect_testbed.kernel import containment
from smbdirect_testbed.kernel.containment import Contained, in_root, on_this_computer
from smbdirect_testbed.lib import process
from smbdirect_testbed.lib.confinement import landlock_version
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.process import CommandResult

_WAYS = ["namespaces", "none"]


@pytest.fixture(params=_WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "none":
        if os.geteuid() != 0 or not landlock_version():
            pytest.skip("an ordinary user always has namespaces; others need Landlock")
        monkeypatch.setattr(containment, "has_namespaces", lambda: False)
    elif not containment.has_namespaces():
        pytest.skip("this computer permits no namespaces")
    return str(request.param)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


@pytest.fixture(params=["root", "host"])
def contained(way: str, work: Path, request: pytest.FixtureRequest) -> Contained:
    """A build in a system of its own, which is this computer's here, or with its programs."""
    if request.param == "root":
        return in_root(Path("/"), [PurePosixPath(work)])
    return on_this_computer([], [work])


def _run(contained: Contained, argv: Sequence[str]) -> CommandResult:
    return process.run(
        [*contained.prefix, *argv],
        check=False,
        timeout=30,
        env=contained.env,
        confinement=contained.confinement,
    )


def test_it_writes_to_its_work_directory_alone(
    contained: Contained, work: Path, tmp_path: Path
) -> None:
    assert _run(contained, ["sh", "-c", f"echo x >{work}/file; mkdir {work}/d"]).ok
    assert (work / "file").read_text() == "x\n"
    assert _run(contained, ["sh", "-c", 'echo x >"${TMPDIR-/tmp}"/file; echo >/dev/null']).ok
    (work / "link").symlink_to(tmp_path)
    for directory in (tmp_path, work / "link", "/usr", "/etc", "/var/tmp"):
        # Of /tmp it has one of its own.
        done = _run(contained, ["touch", f"{directory}/new"])
        assert not done.ok or contained.prefix[0] == "bwrap"
        assert not Path(directory, "new").exists()


def test_it_has_no_network(contained: Contained) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = f"import socket; socket.create_connection({server.getsockname()}, 3)"
        server.settimeout(0.05)
        done = _run(contained, ["/usr/bin/python3", "-I", "-S", "-c", connect])
        assert not done.ok
        assert "Error" in done.stderr
        with pytest.raises(TimeoutError):
            server.accept()


def test_it_has_no_capabilities(contained: Contained) -> None:
    read = "import ctypes; d = (ctypes.c_uint * 6)(); h = (ctypes.c_uint * 2)(0x20080522, 0);"
    read += "ctypes.CDLL(None).capget(h, d); print(d[0] | d[1] | d[2] | d[3] | d[4] | d[5])"
    assert _run(contained, ["/usr/bin/python3", "-I", "-c", read]).stdout == "0\n"
    assert not _run(contained, ["chroot", "/", "true"]).ok
    assert not _run(contained, ["mknod", "/tmp/device", "c", "1", "3"]).ok


def test_it_reaches_no_other_process(contained: Contained) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        assert not _run(contained, ["sh", "-c", f"kill -9 {other.pid}"]).ok
        assert other.poll() is None
        other.kill()


def test_with_the_programs_of_this_computer_it_sees_no_files_of_its_users(
    way: str, work: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("PRIVATE KEY")
    contained = on_this_computer([], [work])
    for file in (tmp_path / "key", "/etc/passwd"):
        assert not _run(contained, ["cat", str(file)]).ok
    assert (
        "PRIVATE" in _run(on_this_computer([tmp_path], [work]), ["cat", f"{tmp_path}/key"]).stdout
    )


def test_an_ordinary_user_needs_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(ProvisionError) as raised:
        containment.has_namespaces.__wrapped__()
    assert raised.value.hint == "install the package bubblewrap"
