"""Taking down a machine of the carrier ``local``, from any state."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from smbdirect_testbed.carriers.local.first_process import FirstProcess, first_process
from smbdirect_testbed.carriers.local.modules import unload
from smbdirect_testbed.carriers.local.record import (
    LocalRecord,
    boot,
    remove_record,
)
from smbdirect_testbed.carriers.machine_process import belongs_to_us
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
                _end(init)
            finally:
                init.close()
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
    remove_record(record)


def _end(init: FirstProcess) -> None:
    _end_users(init.pid)
    _remove_rdma_links(init)
    init.kill()
    if not init.ended(timeout=_TIMEOUT):
        raise ProvisionError(f"process {init.pid} does not end")


def _end_users(init: int) -> None:
    """End all processes that use RDMA links, so the links can be removed; hosts stay."""

    def users() -> list[int]:
        return [pid for pid in _inside(init) if pid != init and not _is_holder(pid)]

    def ended() -> bool:
        for pid in (found := users()):
            _kill_inside(init, pid)
        return not found

    wait_until(ended, "the machine's programs to end", timeout=_TIMEOUT)


def _kill_inside(init: int, pid: int) -> None:
    """Kill a process of the machine, and none that has got its number since."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if _namespace(pid) == _namespace(init) != "":
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def _remove_rdma_links(init: FirstProcess) -> None:
    """Remove the RDMA links on our interfaces, before these go with their namespaces."""
    for pid in (init.pid, *filter(_is_holder, _inside(init.pid))):
        with suppress(OSError):
            net = os.open(_PROC / str(pid) / "ns/net", os.O_RDONLY)
            try:
                if pid == init.pid or _is_holder(pid):
                    _remove_links_in(init, net)
            finally:
                os.close(net)


def _remove_links_in(init: FirstProcess, net: int) -> None:
    """Remove the RDMA links of one network namespace."""
    there = [f"--net=/proc/{os.getpid()}/fd/{net}"]
    found = _enter(init, there, "rdma", "-j", "link", "show")
    macs = _macs(_enter(init, there, "ip", "-j", "link", "show"))
    for link in json.loads(found or "[]"):
        if macs.get(link.get("netdev", ""), "").startswith(_OUR_MACS):
            _enter(init, there, "rdma", "link", "delete", link["ifname"])


def _macs(listed: str) -> dict[str, str]:
    return {link["ifname"]: link.get("address", "") for link in json.loads(listed or "[]")}


def _enter(init: FirstProcess, options: list[str], *command: str) -> str:
    """Run a command of the image; what fails here is left to the end of the namespace."""
    try:
        return process.run(
            [*init.enter("mnt"), *options, "--", *command], check=False, timeout=_TIMEOUT
        ).stdout
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
    """Whether a process holds a host's namespaces: of root's, which no test's user is."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes() == _HOLDER and belongs_to_us(pid)
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
