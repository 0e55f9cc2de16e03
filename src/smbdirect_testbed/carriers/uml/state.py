"""What is known of a machine of the carrier ``uml`` on this computer: files, record, processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from smbdirect_testbed.carriers.machine_files import VmState, read_fields, write_fields
from smbdirect_testbed.carriers.machine_process import Identity
from smbdirect_testbed.carriers.uml.slirp import Slirp


@dataclass(frozen=True)
class UmlRecord:
    """The data that another process needs to use or to end a machine.

    :param boot_failures: why earlier attempts to boot it failed
    """

    name: str
    uuid: UUID
    boot_failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class UmlIdentity(Identity):
    """The identity of one machine's processes; its root has their sockets."""

    def matches(self, arguments: list[bytes]) -> bool:
        if uuid_option(self.uuid).encode() in arguments:
            return True
        return os.fsencode(Slirp(self.root).frames) in arguments


@dataclass(frozen=True)
class UmlState(VmState):
    """The files of one machine below a directory.

    :param sees: a directory of this computer that the machine may read, besides its shared one
    """

    sees: Path | None = None

    @property
    def uml(self) -> Path:
        """Sockets of the machine, and links to its files: paths without special characters."""
        return self.runtime / "uml"

    def write_uml_record(self, record: UmlRecord) -> None:
        """Write the record, in place of an earlier one."""
        write_fields(self._uml_record, record)

    def read_uml_record(self) -> UmlRecord | None:
        """The record of the machine that runs here or left its files here."""
        if (data := read_fields(self._uml_record)) is None:
            return None
        return UmlRecord(data["name"], UUID(data["uuid"]), tuple(data["boot_failures"]))

    @property
    def _uml_record(self) -> Path:
        return self.runtime / "uml.json"


def identity_of(state: UmlState, record: UmlRecord) -> UmlIdentity:
    """The identity of the processes of a machine."""
    return UmlIdentity(record.uuid, state.uml)


def uuid_option(uuid: UUID) -> str:
    """The option on the kernel's command line that says whose process it is."""
    return f"testbed.uuid={uuid}"
