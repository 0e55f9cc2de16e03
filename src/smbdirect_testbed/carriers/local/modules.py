"""Modules that came with a machine of the carrier ``local``, and go with it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from smbdirect_testbed.carriers.local.record import LocalRecord
from smbdirect_testbed.config.rdma import RdmaType
from smbdirect_testbed.kernel.built_driver import MODULES
from smbdirect_testbed.kernel.running import RunningKernel, loaded_modules
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.wait import wait_until

DRIVER = tuple(MODULES)
"""The modules under test, which no other program may use."""

NEEDED = ("loop", "erofs", "overlay", "ext4", "veth", "rdma_ucm", "ib_uverbs", "ib_umad")
"""The modules for a machine itself, without those for its RDMA links."""

_REQUESTED_BELOW = (
    "arch/x86/crypto",
    "crypto",
    "drivers/infiniband",
    "fs/netfs",
    "fs/nls",
    "fs/smb",
    "lib",
    "net/dns_resolver",
    "net/sched",
)
"""Directories of modules that the kernel loads by itself on requests of ours."""

_SYS_DELETE_MODULE = 176
"""The number of the system call on x86_64."""
_TIMEOUT = 20.0
"""Seconds until ending connections no longer use a module."""


def ours(kernel: RunningKernel, driver: Iterable[str]) -> tuple[str, ...]:
    """Modules that we may cause to load: ours, their dependencies, and those they request.

    :param driver: the names of the modules that are loaded from a build
    """
    asked = kernel.closure([*NEEDED, *(t.traits.module for t in RdmaType), *DRIVER, *driver])
    return tuple(sorted(asked | set(kernel.below(_REQUESTED_BELOW))))


def unload(record: LocalRecord) -> list[str]:
    """Unload the modules that came with a machine; return those that are in use and stay.

    Modules that were loaded before, or that other programs could have loaded, always stay.
    """
    try:
        wait_until(lambda: not _unload_idle(record), "modules to be idle", timeout=_TIMEOUT)
    except ProvisionError:
        return sorted(_left(record))
    return []


def _unload_idle(record: LocalRecord) -> set[str]:
    """Unload modules as long as one can be unloaded; return the rest."""
    while True:
        left = _left(record)
        loaded = loaded_modules()
        idle = [name for name in loaded if name in left and not loaded[name].users]
        deleted = [name for name in idle if _delete(name)]
        if not deleted:
            return left


def _left(record: LocalRecord) -> set[str]:
    came = set(record.modules_ours) - set(record.modules_before)
    return came & loaded_modules().keys()


def _delete(name: str) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(_SYS_DELETE_MODULE, name.encode(), os.O_NONBLOCK)) == 0
