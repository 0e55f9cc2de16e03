"""A place for the file that is the memory of a User Mode Linux.

User Mode Linux makes the file in ``TMPDIR``, removes its name, and maps it executable. A mount with
``noexec`` refuses that, and one that is too small ends the machine with a bus error in the middle
of its work.
"""

from __future__ import annotations

import mmap
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from smbdirect_testbed.lib.errors import ProvisionError

_MIB = 1 << 20


def memory_place(memory: int, places: Sequence[Path]) -> Path:
    """The first directory that can hold a machine's memory.

    :param memory: MiB
    :raises ProvisionError: none can, with the reason of each
    """
    reasons = []
    for place in places:
        reason = unfit(place, memory)
        if reason is None:
            return place
        reasons.append(f"{place} {reason}")
    raise ProvisionError(
        f"no place for the {memory} MiB of memory of a User Mode Linux: {', '.join(reasons)}",
        hint="mount /dev/shm larger and with exec, or set SMBDIRECT_TESTBED_STATE to a directory"
        " elsewhere",
    )


def unfit(place: Path, memory: int) -> str | None:
    """Why a directory cannot hold a machine's memory, tried; None if it can.

    :param memory: MiB
    """
    try:
        free = shutil.disk_usage(place).free // _MIB
        # As User Mode Linux does. What a mount permits is only known by trying.
        with tempfile.TemporaryFile(dir=place) as file:
            file.truncate(mmap.PAGESIZE)
            protection = mmap.PROT_READ | mmap.PROT_EXEC
            try:
                mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=protection).close()
            except PermissionError:
                return "is mounted noexec"
    except FileNotFoundError:
        return "is not there"
    except OSError as e:
        return f"cannot be written to ({e.strerror})"
    return f"has {free} MiB free" if free <= memory else None
