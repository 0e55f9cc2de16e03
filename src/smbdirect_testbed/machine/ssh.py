"""Commands in a machine by ssh: keys of the run, and one connection for all commands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smbdirect_testbed.lib import process
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.untrusted import UntrustedDirectory

_ALIAS = "testbed"
_USER_KEY = "id_ed25519"
_HOST_KEY = "host_ed25519"
_AUTHORIZED = "authorized_keys"

SHARED_FILES = "ssh"
"""Below the shared directory: what the machine needs to let us in."""

FAILED = 255
"""The exit status of ssh itself failing, as opposed to the command."""

TAG = "SMBDIRECT_TESTBED_COMMAND"
"""The variable that a command and all that it starts can be told by."""

KILL_TAGGED = """\
for file in $(grep -lzsFx "$1" /proc/[0-9]*/environ); do
    pid=${file#/proc/}
    kill -KILL "${pid%/environ}"
done
"""

_CONFIG = """\
Host {alias}
    HostName 127.0.0.1
    Port {port}
    User root
    HostKeyAlias {alias}
    UserKnownHostsFile "{directory}/known_hosts"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    UpdateHostKeys no
    IdentityFile "{directory}/{key}"
    IdentitiesOnly yes
    IdentityAgent none
    PreferredAuthentications publickey
    # On loopback; the default, safe against quantum computers, costs half a second emulated.
    KexAlgorithms curve25519-sha256
    ControlPath "{directory}/control"
    ControlMaster no
    ConnectTimeout 30
    ServerAliveInterval 15
    ServerAliveCountMax 4
    ForwardAgent no
    ForwardX11 no
    LogLevel ERROR
"""


def make_keys(directory: Path, shared: Path) -> None:
    """Make a user key and a host key for one machine.

    :param directory: where all of them are kept
    :param shared: the directory shared with the machine, which gets what its sshd needs
    """
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    user_key = _make_key(directory / _USER_KEY)
    host_key = _make_key(directory / _HOST_KEY)
    (directory / _AUTHORIZED).write_text(user_key)
    (directory / "known_hosts").write_text(f"{_ALIAS} {host_key}")
    files = UntrustedDirectory(shared)
    files.make_directory(SHARED_FILES, 0o700)
    for name, content in offered_keys(directory).items():
        files.write(f"{SHARED_FILES}/{name}", content, 0o600)


def offered_keys(directory: Path) -> dict[str, str]:
    """The files that a machine's sshd needs: contents by name; see :func:`make_keys`."""
    return {name: (directory / name).read_text() for name in (_AUTHORIZED, _HOST_KEY)}


def _make_key(path: Path) -> str:
    """Make a key in place of any that is there; returns the public key."""
    public = path.with_name(f"{path.name}.pub")
    for file in (path, public):
        file.unlink(missing_ok=True)
    process.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", _ALIAS, "-f", path], timeout=30
    )
    return public.read_text()


@dataclass(frozen=True)
class SshChannel:
    """A way to run commands in a machine.

    Between :meth:`open` and :meth:`close` an ssh process in the background holds a connection, and
    a command costs a tenth of a second instead of most of one (emulated). Without it, commands
    work as well.

    :param directory: has the keys, and gets the ssh configuration and the Unix socket of the
        process in the background: a short path, without characters that mean something to ssh
    """

    directory: Path

    @property
    def config(self) -> Path:
        """An ssh configuration with the host ``testbed``, for ssh, scp and rsync by hand."""
        return self.directory / "config"

    @property
    def control(self) -> Path:
        """The Unix socket of the process in the background."""
        return self.directory / "control"

    def configure(self, port: int) -> None:
        """Write the ssh configuration.

        :param port: the loopback port that leads to the machine's sshd
        """
        self.config.write_text(
            _CONFIG.format(
                alias=_ALIAS,
                port=port,
                directory=self.directory,
                key=_USER_KEY,
            )
        )

    def argv(self, command: Sequence[str], *, tty: bool = False, tag: str = "") -> list[str]:
        """The argv that runs ``command`` in the machine; without a command, a login shell.

        :param tag: a name for :meth:`kill_argv`
        """
        remote = [shlex.join(command)] if command else []
        if tag:
            remote = [f"export {TAG}={tag}; exec {remote[0]}"]
        return [*self._ssh("-tt" if tty else "-T"), "--", _ALIAS, *remote]

    def kill_argv(self, tag: str) -> list[str]:
        """The argv that kills a command and all that it started, in the machine.

        They inherited the tag in their environment; ssh has no way to signal a command.
        """
        return self.argv(["sh", "-c", KILL_TAGGED, "sh", f"{TAG}={tag}"])

    def open(self, *, timeout: float) -> None:
        """Start the process in the background, unless it runs already.

        :param timeout: seconds until giving up
        :raises ProvisionError: the machine does not let us in
        """
        if self.is_open():
            return
        self.control.unlink(missing_ok=True)
        try:
            # -E: the process in the background must not hold our pipes open.
            process.run(
                [*self._ssh("-E", str(self._log)), "-M", "-N", "-f", "--", _ALIAS],
                timeout=timeout,
            )
        except CommandFailed as e:
            log = self._log.read_text(errors="replace") if self._log.exists() else ""
            raise ProvisionError(
                "no ssh connection to the machine", hint=f"see {self._log}", detail=log.strip()
            ) from e

    def is_open(self) -> bool:
        """Whether the process in the background runs."""
        return self.control.exists() and self._ask("check")

    def close(self) -> None:
        """End the process in the background; nothing happens when there is none."""
        if self.control.exists():
            self._ask("exit")
        self.control.unlink(missing_ok=True)

    @property
    def _log(self) -> Path:
        return self.directory / "ssh.log"

    def _ssh(self, *options: str) -> list[str]:
        return ["ssh", "-F", str(self.config), *options]

    def _ask(self, what: str) -> bool:
        try:
            return process.run([*self._ssh("-O", what), _ALIAS], timeout=10, check=False).ok
        except CommandFailed:
            return False
