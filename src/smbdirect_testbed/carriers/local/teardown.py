"""Taking down a machine of the carrier ``local``, from any state."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from smbdirect_testbed.carriers.local.modules import unload
from smbdirect_testbed.carriers.local.record import (
    LocalRecord,
    boot,
    remove_record,
)
from smbdirect_testbed.carriers.machine_process import QemuProcess, end_processes, open_process
from smbdirect_testbed.lib import process
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.lib.wait import wait_until

_PROC = Path("/proc")
_HOLDER = b"sleep\0infinity\0"
"""The process that holds a host's namespaces; see :mod:`smbdirect_testbed.agent`."""
_OUR_MACS = "02:53:4d:42:"
_TIMEOUT = 20.0

_REMOVE_GROUP = """
mount -t cgroup2 none "$0"
cd "$0"
[ ! -e "$1" ] || find "$1" -depth -type d -delete
"""


def take_down(record: LocalRecord) -> None:
    """End the machine's processes, and remove its links, mounts and modules.

    The console and the shared directory stay. What cannot be removed stays, and is reported.

    :raises ProvisionError: a process does not end, so that nothing else can
    """
    if record.boot == boot():
        if init := first_process(record):
            try:
                _end_users(init.pid)
                _remove_rdma_links(init.pid)
            finally:
                init.close()
        end_processes(record.identity, timeout=_TIMEOUT)
        with suppress(ProvisionError):
            wait_until(lambda: not _interfaces(), "our interfaces to go", timeout=_TIMEOUT)
        _remove_group(record)
        if stuck := unload(record):
            Progress().say(
                f"{'modules' if len(stuck) > 1 else 'module'} {', '.join(stuck)}, which came with "
                f"machine {record.name}, cannot be unloaded: something uses them"
            )
    record.scratch.unlink(missing_ok=True)
    with suppress(OSError):
        record.mount_point.rmdir()
    remove_record()


def _end_users(init: int) -> None:
    """End all processes that use RDMA links, so the links can be removed; hosts stay."""

    def users() -> list[int]:
        return [pid for pid in _inside(init) if pid != init and not _is_holder(pid)]

    def ended() -> bool:
        for pid in (found := users()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found

    wait_until(ended, "the machine's programs to end", timeout=_TIMEOUT)


def _remove_rdma_links(init: int) -> None:
    """Remove the RDMA links on our interfaces, before these go with their namespaces."""
    for pid in (init, *filter(_is_holder, _inside(init))):
        net = [f"--net=/proc/{pid}/ns/net"]
        found = _enter(init, net, "rdma", "-j", "link", "show")
        macs = _macs(_enter(init, net, "ip", "-j", "link", "show"))
        for link in json.loads(found or "[]"):
            if macs.get(link.get("netdev", ""), "").startswith(_OUR_MACS):
                _enter(init, net, "rdma", "link", "delete", link["ifname"])


def _macs(listed: str) -> dict[str, str]:
    return {link["ifname"]: link.get("address", "") for link in json.loads(listed or "[]")}


def _enter(init: int, options: list[str], *command: str) -> str:
    """Run a command of the image; after a failure the end of the namespace does the work."""
    enter = ["nsenter", f"--target={init}", "--mount", "--root", "--wd", *options, "--"]
    try:
        return process.run([*enter, *command], check=False, timeout=_TIMEOUT).stdout
    except CommandFailed:
        return ""


def _interfaces() -> list[Path]:
    """Our interfaces in this computer's own network stack: they go soon after their peers."""
    found = []
    for address in Path("/sys/class/net").glob("*/address"):
        with suppress(OSError):
            if address.read_text().startswith(_OUR_MACS):
                found.append(address.parent)
    return found


def _inside(init: int) -> Iterator[int]:
    """The processes in the machine, as this computer numbers them."""
    namespace = _namespace(init)
    if namespace == _namespace(os.getpid()):
        raise AssertionError("these are all processes of this computer")
    for entry in _PROC.iterdir():
        if entry.name.isdecimal() and namespace and _namespace(int(entry.name)) == namespace:
            yield int(entry.name)


def _namespace(pid: int) -> str:
    try:
        return str((_PROC / str(pid) / "ns/pid").readlink())
    except OSError:
        return ""


def _is_holder(pid: int) -> bool:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes() == _HOLDER
    except OSError:
        return False


def _remove_group(record: LocalRecord) -> None:
    """Remove the control group after its processes have ended; killed ones take a moment."""
    record.mount_point.mkdir(parents=True, exist_ok=True)
    remove = ["unshare", "--mount", "sh", "-ec", _REMOVE_GROUP]

    def removed() -> bool:
        done = process.run(
            [*remove, record.mount_point, record.control_group], check=False, timeout=_TIMEOUT
        )
        return done.ok

    with suppress(ProvisionError):
        wait_until(removed, "the machine's processes to be gone", timeout=_TIMEOUT)


def first_process(record: LocalRecord) -> QemuProcess | None:
    """The machine's first process, if it runs; the caller closes it.

    The process that starts it has the same argument, but is in this computer's process namespace.
    """
    found = open_process(record.identity)
    if found and _namespace(found.pid) in ("", _namespace(os.getpid())):
        found.close()
        return None
    return found
