"""A directory that this computer and a machine see under two names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class SharedDirectory:
    """A directory that this computer and a machine see under two names."""

    here: Path
    there: PurePosixPath

    def path_there(self, path: Path) -> PurePosixPath:
        """The machine's name of a file below ``here``."""
        return self.there / path.relative_to(self.here)
