"""The agent as a program of one file, offered to a machine."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.untrusted import UntrustedDirectory

_PACKAGE = paths.PACKAGE / "agent"
DIRECTORY = "agent"
"""Below the shared directory: the agent's program, and what is too much for its connection."""
_PROGRAM = "agent.pyz"
_PORT = "port"
"""The machine's name of the agent's serial port. If it is there, the image's init starts it."""


def offer_agent(shared: Path, port: str | None) -> Path:
    """Put the agent's program into a shared directory; return its path.

    :param port: the machine's name of the serial port; for this, the image's init starts it
    """
    files = UntrustedDirectory(shared)
    files.write(f"{DIRECTORY}/{_PROGRAM}", _packed())
    if port:
        files.write(f"{DIRECTORY}/{_PORT}", port)
    return shared / DIRECTORY / _PROGRAM


def _packed() -> bytes:
    """The agent as a program of one file; not compressed, since that would cost more to undo."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("smbdirect_testbed/__init__.py", "")
        for file in sorted(_PACKAGE.glob("*.py")):
            if file.name == "__main__.py":
                archive.writestr(file.name, file.read_bytes())
            else:
                archive.writestr(f"smbdirect_testbed/agent/{file.name}", file.read_bytes())
    return packed.getvalue()
