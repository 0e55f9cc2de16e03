"""A directory that this computer and a machine see under two names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from smbdirect_testbed.lib.untrusted import UntrustedDirectory


@dataclass(frozen=True)
class SharedDirectory:
    """A directory that this computer and a machine see under two names.

    Both write to it, so this computer reads and writes by :attr:`files` alone.
    """

    here: Path
    there: PurePosixPath

    @property
    def files(self) -> UntrustedDirectory:
        """Its files, without following what the machine made links."""
        return UntrustedDirectory(self.here)

    def path_there(self, path: Path) -> PurePosixPath:
        """The machine's name of a file below ``here``."""
        return self.there / path.relative_to(self.here)
