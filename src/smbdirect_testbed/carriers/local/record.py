"""The record of the carrier ``local`` on this computer, by which all can be undone."""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from smbdirect_testbed.lib.errors import ProvisionError

RECORD = Path("/run/smbdirect-testbed-local/machine.json")
"""There is one for the computer: the kernel has one set of modules. Nobody but root reads it."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class LocalRecord:
    """The record of the machine that is up. It is written before anything is made.

    :param directory: of this machine alone
    :param boot: differs if the computer was restarted since
    :param modules_before: the modules that were loaded; these are never unloaded
    :param modules_ours: those that we may cause to load, directly or not
    """

    name: str
    uuid: UUID
    directory: Path
    boot: str
    modules_before: tuple[str, ...]
    modules_ours: tuple[str, ...]

    @property
    def console(self) -> Path:
        """The file that gets the kernel log."""
        return self.directory / "console.log"

    @property
    def shared(self) -> Path:
        """The directory that is ``/testbed`` in the machine."""
        return self.directory / "shared"

    @property
    def scratch(self) -> Path:
        """The image of the file system on ``/srv``."""
        return self.directory / "scratch.img"

    @property
    def mount_point(self) -> Path:
        """An empty directory here, and the machine's root there."""
        return self.directory / "root"

    @property
    def control_group(self) -> str:
        """The name of its control group."""
        return f"smbdirect-testbed-{self.uuid}"


def boot() -> str:
    """The same until the computer is restarted."""
    return _BOOT.read_text().strip()


def process_note(record: LocalRecord) -> Path:
    """The file that tells which process is the machine's first: see :mod:`.first_process`."""
    return RECORD.with_name(f"{record.uuid}.process")


def write_record(record: LocalRecord) -> None:
    """Keep the record, in place of any earlier one.

    :raises ProvisionError: the directory for it is not this user's alone
    """
    directory = RECORD.parent
    directory.mkdir(mode=0o700, exist_ok=True)
    if not _is_ours(directory):
        raise ProvisionError(
            f"{directory} is not a directory of this user alone",
            hint=f"remove {directory} and try again",
        )
    new = RECORD.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
        f.write(json.dumps(asdict(record), default=str, indent=1))
    new.replace(RECORD)


def read_record() -> LocalRecord | None:
    """The record of the machine that is up, or that was not taken down; None for all but root."""
    try:
        if not _is_ours(RECORD.parent):
            return None
        data: dict[str, Any] = json.loads(RECORD.read_text())
    except FileNotFoundError:
        return None
    return LocalRecord(
        data["name"],
        UUID(data["uuid"]),
        Path(data["directory"]),
        data["boot"],
        tuple(data["modules_before"]),
        tuple(data["modules_ours"]),
    )


def remove_record(record: LocalRecord) -> None:
    """Forget the machine."""
    process_note(record).unlink(missing_ok=True)
    RECORD.unlink(missing_ok=True)
    with suppress(OSError):
        RECORD.parent.rmdir()


def _is_ours(directory: Path) -> bool:
    """Whether a directory is this user's, and nobody else may look into it."""
    found = directory.lstat()
    private = not found.st_mode & 0o077
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and private
