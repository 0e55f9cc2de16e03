"""The record of the carrier ``local`` on this computer, by which all can be undone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from smbdirect_testbed.carriers.machine_process import Identity

RECORD = Path("/run/smbdirect-testbed-local.json")
"""One for all users, because the kernel has one set of modules."""

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
    def identity(self) -> LocalIdentity:
        """The identity of its processes."""
        return LocalIdentity(self.uuid, self.directory)

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


@dataclass(frozen=True)
class LocalIdentity(Identity):
    """The identity of one machine's first process."""

    def matches(self, arguments: list[bytes]) -> bool:
        return uuid_argument(self.uuid).encode() in arguments


def uuid_argument(uuid: UUID) -> str:
    """The argument that the first process of a machine has."""
    return f"testbed.uuid={uuid}"


def boot() -> str:
    """The same until the computer is restarted."""
    return _BOOT.read_text().strip()


def write_record(record: LocalRecord) -> None:
    """Write the record, in place of an earlier one."""
    new = RECORD.with_suffix(".new")
    new.write_text(json.dumps(asdict(record), default=str, indent=1))
    new.replace(RECORD)


def read_record() -> LocalRecord | None:
    """The record of the machine that is up or was not taken down."""
    try:
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


def remove_record() -> None:
    """Remove the record."""
    RECORD.unlink(missing_ok=True)
