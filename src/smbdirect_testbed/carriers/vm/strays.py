"""Virtual machines that nobody can ask for any more."""

from __future__ import annotations

from pathlib import Path

from smbdirect_testbed.carriers.machine_files import find_strays
from smbdirect_testbed.carriers.machine_process import Identity, end_processes


def destroy_vm_strays() -> list[Path]:
    """End this user's machines whose directories were removed while they ran.

    Returns the directories.
    """
    strays = find_strays()
    for state in strays:
        if record := state.read_record():
            end_processes(Identity(record.uuid, state.libvirt))
        state.remove()
    return [state.directory for state in strays]
