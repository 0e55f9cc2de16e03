"""Starting and saving a domain with libvirt inside a process of ours: no daemon, no D-Bus.

libvirt's embedded driver takes one root directory a process and keeps it locked, while the
domains that it starts live on when the process ends
(https://libvirt.org/drvqemu.html#embedded-driver). So each machine has a root of its own, and
:func:`start_domain` runs :mod:`.libvirt_worker` as a short-lived process that starts the domain
and leaves.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from smbdirect_testbed.lib import process
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError

_TIMEOUT = 90.0
_WORKER = "smbdirect_testbed.carriers.vm.libvirt_worker"

# No control group is made: a container's are read-only, and libvirt refuses to start without them.
_CONFIGURATION = """\
user = "+{uid}"
group = "+{gid}"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
security_default_confined = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""

_STARTED = re.compile(
    r"starting up libvirt version: (?P<libvirt>[^\n]+?), qemu version: (?P<qemu>[^\n]+?), kernel:"
)

_CAPABILITIES = Path("cache/qemu/capabilities")
"""Below a root: what libvirt learned about each QEMU, by running it; seconds of work."""


class StartFailed(ProvisionError):
    """libvirt did not start the domain."""


@dataclass(frozen=True)
class Versions:
    """What carries a virtual machine, with the versions of the distribution's packages."""

    libvirt: str
    qemu: str


def start_domain(
    root: Path,
    xml: str,
    uuid: UUID,
    capabilities_cache: Path,
    *,
    state: Path | None = None,
    wires: Sequence[int] = (),
) -> Versions:
    """Start a domain below a root directory of its own.

    Whether this returns or raises (Ctrl-C too), a process with ``uuid`` among its arguments may
    run afterwards; ending it is the caller's business.

    :param root: libvirt's directory for this domain; its Unix sockets lie below it
    :param uuid: the domain's, which makes all processes that belong to it known by their arguments
    :param capabilities_cache: where libvirt's knowledge of QEMU is kept between roots
    :param state: what :func:`save_domain` saved of another domain, for one that waits for it
    :param wires: sockets, as file descriptors, for the domain's hubs 1, 2, ...
    :raises StartFailed: with libvirt's reason
    """
    configuration = root / "etc" / "qemu.conf"
    configuration.parent.mkdir(parents=True, exist_ok=True)
    configuration.write_text(_CONFIGURATION.format(uid=os.geteuid(), gid=os.getegid()))
    _copy_newer(capabilities_cache, root / _CAPABILITIES)
    words = ["start", state or "", *map(str, wires)]
    _work(root, uuid, *words, input=xml, pass_fds=wires)
    _copy_newer(root / _CAPABILITIES, capabilities_cache)
    return _read_versions(root / "log" / "qemu")


def save_domain(root: Path, uuid: UUID, state: Path) -> None:
    """Stop a domain and save its state, without its memory when that is a shared file.

    It does not run any further, and is to be ended by the caller.

    :param root: libvirt's directory for this domain, as it was for :func:`start_domain`
    :param state: the file to write
    :raises StartFailed: with libvirt's reason
    """
    _work(root, uuid, "save", state)


def _work(
    root: Path, uuid: UUID, *words: str | Path, input: str = "", pass_fds: Sequence[int] = ()
) -> None:
    try:
        process.run(
            [sys.executable, "-m", _WORKER, root, str(uuid), *words],
            input=input,
            timeout=_TIMEOUT,
            pass_fds=pass_fds,
            # An ordinary user's libvirt would leave files in their home directory.
            env={f"XDG_{kind}_HOME": str(root / "home") for kind in ("CACHE", "CONFIG", "DATA")},
        )
    except CommandFailed as e:
        reason = e.output.strip().splitlines()[-1:] or [f"it did not answer in {_TIMEOUT:g} s"]
        raise StartFailed(
            f"libvirt could not {words[0]} the machine: {reason[0]}",
            hint="see smbdirect-testbed doctor",
            detail=e.output.strip(),
        ) from e


def _read_versions(logs: Path) -> Versions:
    """The versions that libvirt wrote down when it started QEMU."""
    for log in logs.glob("*.log"):
        if found := _STARTED.search(log.read_text(errors="replace")):
            return Versions(found["libvirt"], found["qemu"])
    return Versions("unknown", "unknown")


def _copy_newer(source: Path, target: Path) -> None:
    """Copy the XML files that ``target`` lacks or has older ones of.

    libvirt checks each file against QEMU, the kernel and itself before it believes it, so a wrong
    one costs time and nothing else; nor is it an error when a file cannot be copied.
    """
    with suppress(OSError):
        target.mkdir(parents=True, exist_ok=True)
        for file in source.glob("*.xml"):
            copy = target / file.name
            if copy.exists() and copy.stat().st_mtime >= file.stat().st_mtime:
                continue
            # Renamed into place, since other runs read and write the same files.
            descriptor, name = tempfile.mkstemp(dir=target, prefix=".")
            os.close(descriptor)
            try:
                shutil.copy2(file, name)
                Path(name).replace(copy)
            except BaseException:
                Path(name).unlink()
                raise
