"""Keys and command lines of ssh, without a machine."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path

import pytest

from smbdirect_testbed.lib import process
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.machine.ssh import SshChannel, make_keys


@pytest.fixture
def channel(tmp_path: Path) -> SshChannel:
    channel = SshChannel(tmp_path / "ssh")
    make_keys(channel.directory, tmp_path / "shared")
    channel.configure(2222)
    return channel


def _effective(channel: SshChannel) -> dict[str, str]:
    """The configuration as ssh understands it."""
    argv = ["ssh", "-G", "-F", str(channel.config), "testbed"]
    lines = process.run(argv, timeout=30).stdout.splitlines()
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


def test_the_machine_gets_what_it_needs_and_not_our_private_key(
    channel: SshChannel, tmp_path: Path
) -> None:
    offered = tmp_path / "shared" / "ssh"
    assert {p.name for p in offered.iterdir()} == {"authorized_keys", "host_ed25519"}
    assert stat.S_IMODE(offered.stat().st_mode) == 0o700
    assert stat.S_IMODE((offered / "host_ed25519").stat().st_mode) == 0o600
    key = channel.directory / "id_ed25519"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    public = (offered / "authorized_keys").read_text()
    assert public == key.with_suffix(".pub").read_text()


def test_the_host_key_is_known_beforehand(channel: SshChannel, tmp_path: Path) -> None:
    known = (channel.directory / "known_hosts").read_text().split()
    offered = (channel.directory / "host_ed25519.pub").read_text().split()
    assert known[0] == "testbed"
    assert known[1:3] == offered[:2]


def test_each_machine_has_keys_of_its_own(channel: SshChannel, tmp_path: Path) -> None:
    before = (channel.directory / "id_ed25519").read_text()
    make_keys(channel.directory, tmp_path / "shared")
    assert (channel.directory / "id_ed25519").read_text() != before


def test_configuration(channel: SshChannel) -> None:
    found = _effective(channel)
    assert found["hostname"] == "127.0.0.1"
    assert found["port"] == "2222"
    assert found["stricthostkeychecking"] in ("true", "yes")
    assert found["identityfile"] == str(channel.directory / "id_ed25519")
    assert found["controlpath"] == str(channel.control)
    assert found["userknownhostsfile"] == str(channel.directory / "known_hosts")


@pytest.mark.parametrize(
    "command", [["echo", "a b", "$HOME", "it's", ""], ["sh", "-c", "exit 3"], ["-x", "; reboot"]]
)
def test_arguments_arrive_as_they_are(channel: SshChannel, command: list[str]) -> None:
    argv = channel.argv(command)
    assert shlex.split(argv[-1]) == command
    assert argv[-2] == "testbed"


def test_terminal_and_login_shell(channel: SshChannel) -> None:
    assert channel.argv([], tty=True)[-3:] == ["-tt", "--", "testbed"]


def test_a_tagged_command_is_still_one_command(channel: SshChannel) -> None:
    remote = channel.argv(["sh", "-c", 'echo "$SMBDIRECT_TESTBED_COMMAND"; exit 3'], tag="t1")[-1]
    result = process.run(["sh", "-c", remote], check=False, timeout=30)
    assert (result.stdout, result.status) == ("t1\n", 3)


def test_killing_by_tag_hits_nothing_else(channel: SshChannel) -> None:
    script = channel.kill_argv("none-has-this")[-1]
    assert process.run(["sh", "-c", script], timeout=30).output == ""


def test_nobody_listens(channel: SshChannel) -> None:
    channel.configure(1)
    with pytest.raises(ProvisionError, match="no ssh connection") as caught:
        channel.open(timeout=20)
    assert "refused" in (caught.value.detail or "")
    assert not channel.is_open()
    channel.close()
