"""Starting a domain with libvirt inside a process of ours: no daemon, no D-Bus, no cgroups.

libvirt's embedded driver takes one root directory a process and keeps it locked, while the
domains that it starts live on when the process ends
(https://libvirt.org/drvqemu.html#embedded-driver). So each machine has a root of its own, and
:func:`start_domain` runs this module as a short-lived process that starts the domain and leaves.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from smbdirect_testbed import process
from smbdirect_testbed.errors import CommandFailed, ProvisionError

_TIMEOUT = 90.0

_CONFIGURATION = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
security_default_confined = 0
namespaces = []
stdio_handler = "file"
"""

_CAPABILITIES = Path("cache/qemu/capabilities")
"""Below a root: what libvirt learned about each QEMU, by running it; seconds of work."""


class StartFailed(ProvisionError):
    """libvirt did not start the domain."""


@dataclass(frozen=True)
class Versions:
    """What carries a virtual machine."""

    libvirt: str
    qemu: str


def start_domain(root: Path, xml: str, uuid: UUID, capabilities_cache: Path) -> Versions:
    """Start a domain below a root directory of its own.

    Whether this returns or raises (Ctrl-C too), a process with ``uuid`` among its arguments may
    run afterwards; ending it is the caller's business.

    :param root: libvirt's directory for this domain; its Unix sockets lie below it
    :param uuid: the domain's, which makes all processes that belong to it known by their arguments
    :param capabilities_cache: where libvirt's knowledge of QEMU is kept between roots
    :raises StartFailed: with libvirt's reason
    """
    configuration = root / "etc" / "qemu.conf"
    configuration.parent.mkdir(parents=True, exist_ok=True)
    configuration.write_text(_CONFIGURATION)
    _copy_newer(capabilities_cache, root / _CAPABILITIES)
    try:
        result = process.run(
            [sys.executable, "-m", __name__, root, str(uuid)], input=xml, timeout=_TIMEOUT
        )
    except CommandFailed as e:
        reason = e.output.strip().splitlines()[-1:] or [f"it did not answer in {_TIMEOUT:g} s"]
        raise StartFailed(
            f"libvirt could not start the machine: {reason[0]}",
            hint="see smbdirect-testbed doctor",
            detail=e.output.strip(),
        ) from e
    _copy_newer(root / _CAPABILITIES, capabilities_cache)
    return Versions(**json.loads(result.stdout))


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


def _main() -> int:
    """Start the domain described on standard input below the root in the first argument."""
    import libvirt

    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, args=(libvirt,), daemon=True).start()
    try:
        connection = libvirt.open(f"qemu:///embed?root={sys.argv[1]}")
        connection.createXML(sys.stdin.read(), 0)
        versions = {
            "libvirt": _dotted(connection.getLibVersion()),
            "qemu": _dotted(connection.getVersion()),
        }
    except libvirt.libvirtError as e:
        print(e, file=sys.stderr)
        return 1
    json.dump(versions, sys.stdout)
    return 0


def _run_events(libvirt: Any) -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"


if __name__ == "__main__":
    status = _main()
    sys.stdout.flush()
    sys.stderr.flush()
    # The thread in libvirt's event loop would be met by the interpreter's teardown.
    os._exit(status)
