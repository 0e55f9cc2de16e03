"""An unprivileged way to a machine's ssh: slirp4netns, which is TCP/IP in a process.

User Mode Linux speaks to it over a Unix socket of whole Ethernet frames. The process may answer
those who connect to the port that leads to the machine, and connect to nobody: the machine has no
way out.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from smbdirect_testbed.lib.confinement import Confinement, Network, start_confined
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.wait import wait_until

GUEST_ADDRESS = "10.0.2.15"
_TIMEOUT = 10.0
_PROGRAM_FILES = tuple(
    Path(path)
    for path in ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/resolv.conf")
)
"""What it needs to run; it looks up no names."""


@dataclass(frozen=True)
class Slirp:
    """The network of one machine.

    :param directory: where its Unix sockets are; a short path
    """

    directory: Path

    @property
    def frames(self) -> Path:
        """The socket for the machine's network interface."""
        return self.directory / "bess.sock"

    @property
    def log(self) -> Path:
        """The output of slirp4netns."""
        return self.directory / "slirp.log"

    @property
    def _confinement(self) -> Confinement:
        return Confinement(_PROGRAM_FILES, (self.directory,), Network.ANSWER)

    @property
    def _api(self) -> Path:
        return self.directory / "api.sock"

    def start(self) -> None:
        """Start the process. It ends with the machine, or when it is killed.

        :raises ProvisionError: it does not start
        """
        argv = ["slirp4netns", "--target-type=bess", "--disable-host-loopback", "--disable-dns"]
        argv += [f"--api-socket={self._api}", str(self.frames)]
        with self.log.open("wb") as log:
            try:
                # It reads what the machine sends; a mistake in it must not be a way out.
                process = start_confined(
                    argv,
                    self._confinement,
                    stdout=log,
                    stderr=log,
                    env={"PATH": os.environ.get("PATH", os.defpath)},
                )
            except FileNotFoundError as e:
                raise ProvisionError(
                    "slirp4netns is missing, and the carrier uml needs it",
                    hint="install the package slirp4netns",
                ) from e

        def listening() -> bool:
            if process.poll() is not None:
                raise ProvisionError(
                    "slirp4netns did not start", detail=self.log.read_text(errors="replace")
                )
            return self.frames.exists()

        wait_until(listening, "slirp4netns to listen", timeout=_TIMEOUT, interval=0.005)

    def connect(self) -> socket.socket:
        """The far end of the machine's network interface, for the machine alone."""
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            end.connect(str(self.frames))
        except BaseException:
            end.close()
            raise
        return end

    def forward(self, port: int) -> bool:
        """Forward a loopback port of this computer to the machine's port 22.

        :returns: False if the port is in use
        :raises ProvisionError: slirp4netns does not answer
        """
        arguments = {
            "proto": "tcp",
            "host_addr": "127.0.0.1",
            "host_port": port,
            "guest_addr": GUEST_ADDRESS,
            "guest_port": 22,
        }
        request = {"execute": "add_hostfwd", "arguments": arguments}
        try:
            with wait_until(
                self._connected, "slirp4netns to be ready", timeout=_TIMEOUT, interval=0.005
            ) as api:
                api.sendall(json.dumps(request).encode())
                api.shutdown(socket.SHUT_WR)
                answer = json.loads(b"".join(iter(lambda: api.recv(4096), b"")))
        except (OSError, ValueError) as e:
            raise ProvisionError(f"slirp4netns does not answer: {e}") from e
        return "error" not in answer

    def _connected(self) -> socket.socket | None:
        """A connection to the process; None while it does not listen."""
        api = socket.socket(socket.AF_UNIX)
        try:
            api.settimeout(_TIMEOUT)
            api.connect(str(self._api))
        except (FileNotFoundError, ConnectionRefusedError):
            # It makes the socket shortly before it listens.
            api.close()
            return None
        except BaseException:
            api.close()
            raise
        return api
