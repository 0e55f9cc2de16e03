"""Machines of all carriers: started, and found again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smbdirect_testbed.carriers.carrier import Carrier, MachineParts
from smbdirect_testbed.carriers.table import carrier, known_carriers
from smbdirect_testbed.config.kinds import CarrierKind
from smbdirect_testbed.lib.errors import ProvisionError, UsageError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.machine.machine import Machine

_CARRIER = "carrier"
"""In a machine's directory: the name of its carrier, from before anything else is there."""


@contextmanager
def started_machine(
    kind: CarrierKind, parts: MachineParts[Any], progress: Progress, *, keep: bool
) -> Iterator[Machine]:
    """A machine that takes commands; see :meth:`.Carrier.started`."""
    parts.directory.mkdir(parents=True, exist_ok=True)
    (parts.directory / _CARRIER).write_text(kind)
    with carrier(kind).started(parts, progress, keep=keep) as machine:
        yield machine


def machine_directory(directory: Path, name: str) -> Path:
    """The directory with the files of an instance's machine.

    :param directory: the instance's
    """
    return directory / "machines" / name


def attach(name: str, directory: Path) -> Machine:
    """The machine of an instance that another process left running; it may have died.

    :param directory: the instance's
    :raises ProvisionError: there is none
    """
    of_machine = machine_directory(directory, name)
    if found := _carrier_of(of_machine):
        return found.attach(name, of_machine)
    raise ProvisionError(f"there is no machine {name} in {directory}")


def destroy_all(directory: Path) -> None:
    """End the machines of an instance, and remove their files.

    :param directory: the instance's
    """
    for of_machine in machine_directory(directory, "x").parent.glob("*"):
        if found := _carrier_of(of_machine):
            found.destroy(of_machine.name, of_machine)


def destroy_strays() -> list[Path]:
    """End this user's machines whose directories were removed while they ran.

    Returns the directories.
    """
    # The first carrier is the last: it clears away what none of the others knows.
    found = reversed(known_carriers())
    return [directory for carrier in found for directory in carrier.destroy_strays()]


def _carrier_of(directory: Path) -> Carrier[Any] | None:
    """The carrier of a machine; None if nothing of a machine has been made.

    :raises ProvisionError: it comes from a package that is no longer installed
    """
    try:
        kind = (directory / _CARRIER).read_text()
    except OSError:
        return None
    try:
        return carrier(CarrierKind(kind)) if kind else None
    except UsageError as e:
        raise ProvisionError(
            f"the machine in {directory} cannot be reached: {e.message}",
            hint="install what brought that carrier; or end the machine and remove the directory",
        ) from e
