"""The files of a virtual machine on this computer."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from smbdirect_testbed.carriers.runtime_base import make_runtime_base, runtime_base
from smbdirect_testbed.carriers.vm.domain_xml import Accelerator
from smbdirect_testbed.lib.wait import wait_until
from smbdirect_testbed.machine.ssh import SHARED_FILES

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_OWNER = "owner"
"""In a runtime directory: the path of the directory that it belongs to."""


class Start(StrEnum):
    """How a machine was started."""

    COLD = "cold"
    CLONE = "clone"


@dataclass(frozen=True)
class VmRecord:
    """The data that another process needs to use or to end a machine.

    :param boot_failures: why earlier attempts to boot it, or its template, failed
    :param mac: of the interface that ssh comes by
    :param template: the digest of the template of a clone
    :param clone_failure: why it was booted although it should have been cloned
    """

    name: str
    uuid: UUID
    accelerator: Accelerator
    accelerator_reason: str
    ssh_port: int
    libvirt: str = ""
    qemu: str = ""
    boot_failures: tuple[str, ...] = ()
    mac: str = ""
    start: Start = Start.COLD
    template: str = ""
    clone_failure: str = ""


@dataclass(frozen=True)
class VmState:
    """The files of one machine below a directory.

    A Unix socket's path has at most 107 bytes, libvirt needs about 50 of them, and ``directory``
    may have a long path. So libvirt and ssh work in a runtime directory below ``/tmp``. The link
    ``run`` leads to it.

    :param directory: of this machine alone
    """

    directory: Path

    @property
    def console(self) -> Path:
        """The output of the first serial port."""
        return self.directory / "console.log"

    @property
    def shared(self) -> Path:
        """The directory that the machine also sees."""
        return self.directory / "shared"

    @property
    def scratch(self) -> Path:
        """The image of the scratch disk."""
        return self.directory / "scratch.img"

    @property
    def runtime(self) -> Path:
        """The runtime directory: always the same one for a directory."""
        return runtime_base() / sha256(os.fsencode(self.directory.resolve())).hexdigest()[:12]

    @property
    def libvirt(self) -> Path:
        """libvirt's root."""
        return self.runtime / "libvirt"

    @property
    def ssh(self) -> Path:
        """Keys and configuration of ssh."""
        return self.runtime / "ssh"

    @property
    def agent(self) -> Path:
        """The Unix socket that leads to the serial port of the agent."""
        return self.runtime / "agent.sock"

    @property
    def has_runtime(self) -> bool:
        """Whether a machine runs here or left its files here."""
        return self.runtime.is_dir()

    @property
    def is_linked(self) -> bool:
        """Whether the directory is still there and leads to the runtime directory."""
        return self._link.is_symlink()

    def make(self) -> None:
        """Make the directories.

        :raises ProvisionError: sockets cannot be made
        """
        self.shared.mkdir(parents=True, exist_ok=True)
        self._link.unlink(missing_ok=True)
        self._link.symlink_to(self.runtime)
        wait_until(self._make_runtime, f"{self.runtime} to be made", timeout=5)
        (self.runtime / _OWNER).write_bytes(os.fsencode(self.directory.resolve()))

    def write_record(self, record: VmRecord) -> None:
        """Write the record, in place of an earlier one."""
        write_fields(self._record, record)

    def read_record(self) -> VmRecord | None:
        """The record of the machine that runs here or left its files here."""
        if (data := read_fields(self._record)) is None:
            return None
        return VmRecord(
            **{
                **data,
                "uuid": UUID(data["uuid"]),
                "accelerator": Accelerator(data["accelerator"]),
                "boot_failures": tuple(data["boot_failures"]),
                "start": Start(data["start"]),
            }
        )

    def remove(self) -> None:
        """Remove all but the console and the shared directory, which outlive the machine."""
        shutil.rmtree(self.shared / SHARED_FILES, ignore_errors=True)
        self.scratch.unlink(missing_ok=True)
        shutil.rmtree(self.runtime, ignore_errors=True)
        with suppress(OSError):
            self.runtime.parent.rmdir()
        self._link.unlink(missing_ok=True)

    def _make_runtime(self) -> bool:
        """Make the directory; false if another machine has just removed its parent."""
        make_runtime_base()
        try:
            self.runtime.mkdir(mode=0o700, exist_ok=True)
        except FileNotFoundError:
            return False
        return True

    @property
    def _link(self) -> Path:
        return self.directory / "run"

    @property
    def _record(self) -> Path:
        return self.runtime / "machine.json"


def find_strays() -> list[VmState]:
    """Machines of this user whose directories were removed while they ran."""
    states = [
        VmState(Path(os.fsdecode(owner.read_bytes())))
        for owner in runtime_base().glob(f"*/{_OWNER}")
    ]
    # During its start a machine has the link before it has an owner.
    return [state for state in states if not state.is_linked]


def write_fields(file: Path, record: DataclassInstance) -> None:
    """Write the fields of a record to a file, in place of an earlier one."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(asdict(record), default=str, indent=1))
    new.replace(file)


def read_fields(file: Path) -> dict[str, Any] | None:
    """What :func:`write_fields` wrote, by the fields' names; None if the file is not there."""
    try:
        fields: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    return fields
