"""Where things lie on this computer."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from smbdirect_testbed.lib.errors import ProvisionError

_APP = "smbdirect-testbed"

PACKAGE = Path(__file__).resolve().parents[1]
"""The engine's own modules."""
PROJECT = PACKAGE.parents[1]
"""The checkout: the package is installed from it in editable mode."""


def absolute(path: Path) -> Path:
    """A path that a user wrote: relative to the directory he works in, or with a ``~``."""
    return path.expanduser().absolute()


def environments() -> Path:
    """The directory of environment files."""
    return PROJECT / "envs"


def images() -> Path:
    """The directory of image recipes."""
    return PROJECT / "vm-images"


def kernel_config(name: str) -> Path:
    """A file with options of the kernel that is built for the carrier ``uml``."""
    return images() / "uml" / f"{name}.config"


def kernel_fragments() -> list[str]:
    """The names of what comes on top of the options that all those kernels have."""
    return sorted(f.stem for f in kernel_config("*").parent.glob("*.config") if f.stem != "base")


def scenarios() -> Path:
    """The directory of scenarios."""
    return PROJECT / "scenarios"


def driver() -> Path:
    """The directory of our C code."""
    return PROJECT / "driver"


def require_writable() -> None:
    """Look whether state and results can be kept where they belong, before anything is made.

    :raises ProvisionError: one of the directories cannot be written to
    """
    for directory, what in ((state(), "STATE"), (results(), "RESULTS")):
        place = next(p for p in (directory, *directory.parents) if p.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise ProvisionError(
                f"{directory} cannot be written to",
                hint=f"set SMBDIRECT_TESTBED_{what} to a directory that can",
            )


def cache() -> Path:
    """Images, build roots and built drivers: everything here can be made again."""
    return Path(os.environ.get("SMBDIRECT_TESTBED_CACHE") or platformdirs.user_cache_dir(_APP))


def state() -> Path:
    """Environments that are up: one directory each, removed when it goes down."""
    return Path(os.environ.get("SMBDIRECT_TESTBED_STATE") or platformdirs.user_state_dir(_APP))


def results() -> Path:
    """Results of runs, below the directory the user works in."""
    return Path(os.environ.get("SMBDIRECT_TESTBED_RESULTS") or Path.cwd() / "results")
