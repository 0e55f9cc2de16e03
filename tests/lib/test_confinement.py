"""What a confined program can still do."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from smbdirect_testbed.lib.confinement import (
    Confinement,
    Network,
    landlock_version,
    start_confined,
)

_SYSTEM = tuple(Path(p) for p in ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache"))
_PYTHON = tuple(Path(p) for p in (sys.base_prefix, "/dev/null", "/dev/urandom"))

needs_landlock = pytest.mark.skipif(landlock_version() < 1, reason="needs a kernel with Landlock")


def _run(argv: list[str], *writes: Path, network: Network = Network.NONE) -> tuple[int, str]:
    may = Confinement((*_SYSTEM, *_PYTHON), writes, network)
    started = start_confined(argv, may, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = started.communicate(timeout=60)[0].decode()
    return started.returncode, said


def _python(code: str, *writes: Path, network: Network = Network.NONE) -> str:
    return _run([sys.executable, "-I", "-S", "-c", code], *writes, network=network)[1].strip()


@needs_landlock
def test_only_its_own_files(tmp_path: Path) -> None:
    own, precious = tmp_path / "own", tmp_path / "precious"
    own.mkdir()
    precious.write_text("private")
    (own / "link").symlink_to(precious)
    assert _run(["sh", "-c", f"echo x >{own}/new && mkdir {own}/d && cat {own}/new"], own) == (
        0,
        "x\n",
    )
    for attempt in (
        f"cat {precious}",
        f"cat {own}/link",
        f"cat {own}/../precious",
        "cat /etc/passwd",
    ):
        status, said = _run(["sh", "-c", attempt], own)
        assert status, attempt
        assert "Permission denied" in said
    for attempt in (f"echo x >{precious}", f"echo x >{own}/link", f"rm {precious}"):
        assert _run(["sh", "-c", attempt], own)[0], attempt
    assert precious.read_text() == "private"


@needs_landlock
def test_no_process_but_its_own() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        code = f"import os; os.kill({other.pid}, 9)"
        assert "PermissionError" in _python(code) or landlock_version() < 6
        assert other.poll() is None
        other.kill()
    assert _run(["sh", "-c", "sleep 60 & kill -9 $!"])[0] == 0


def test_no_capabilities_and_none_to_gain() -> None:
    status = dict(
        line.split(":\t", 1)
        for line in _run(
            ["sh", "-c", 'while read -r l; do echo "$l"; done </proc/self/status'], Path("/proc")
        )[1].splitlines()
        if ":\t" in line
    )
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_a_personality_lasts() -> None:
    """User Mode Linux executes itself again until addresses are not random any more."""
    code = """if True:
        import ctypes, os, sys
        if not ctypes.CDLL(None).personality(0x0040000) & 0x0040000:
            assert len(sys.argv) < 3, "lost"
            os.execv(sys.executable, [*sys.orig_argv, "again"])
        print("kept")
    """
    assert _python(code) == "kept"


def test_no_sockets() -> None:
    for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"):
        assert "PermissionError" in _python(f"import socket; socket.socket(socket.{family})")


def test_answers_only() -> None:
    """It can be connected to, and connects to nobody."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.1)
        where = other.getsockname()
        for attempt in (
            f"socket.create_connection({where}, 5)",
            f"socket.socket().sendto(b'x', socket.MSG_FASTOPEN, {where})",
            f"socket.socket().sendmsg([b'x'], (), socket.MSG_FASTOPEN, {where})",
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
            "socket.socket(socket.AF_INET6, socket.SOCK_STREAM)",
            "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
            f"socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', {str(where)!r})",
        ):
            said = _python(f"import socket; {attempt}", network=Network.ANSWER)
            assert "PermissionError" in said, attempt
        with pytest.raises(TimeoutError):
            other.accept()
    # As slirp4netns passes a descriptor to its child.
    pair = "import socket; a, b = socket.socketpair(); a.sendmsg([b'x']); print(b.recv(1))"
    assert _python(pair, network=Network.ANSWER) == "b'x'"
    answer = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "print(s.getsockname()[1], flush=True);"
        "c, _ = s.accept(); c.send(c.recv(9) * 2)"
    )
    may = Confinement((*_SYSTEM, *_PYTHON), (), Network.ANSWER)
    argv = [sys.executable, "-I", "-S", "-c", answer]
    started = start_confined(argv, may, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert started.stdout
    with socket.create_connection(("127.0.0.1", int(started.stdout.readline())), 10) as client:
        client.send(b"abc")
        assert client.recv(9) == b"abcabc"
    started.communicate(timeout=10)


def test_this_process_is_not_confined(tmp_path: Path) -> None:
    _run(["true"])
    socket.socket().close()
    (tmp_path / "file").write_text("x")
    assert (
        subprocess.run(["cat", tmp_path / "file"], capture_output=True, check=True).stdout == b"x"
    )


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        _run(["/usr/bin/there-is-no-such-program"])


def test_no_descriptor_is_left() -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    _run(["true"])
    assert sorted(Path("/proc/self/fd").iterdir()) == before
