"""What this computer has and lacks, as values: what was found, and what to do about it."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from smbdirect_testbed.carriers.trial import Trial, try_uml, try_vm
from smbdirect_testbed.carriers.vm import kvm_probe
from smbdirect_testbed.config.envfile import load_environment
from smbdirect_testbed.image import mirror
from smbdirect_testbed.lib import paths, process
from smbdirect_testbed.lib.errors import ProvisionError

_GIB = 1 << 30
_DISK_NEEDED, _DISK_WANTED = 6, 12
_MEMORY_NEEDED, _MEMORY_WANTED = 2.5, 4
_PYTHON = (3, 11)
_SUBORDINATE_IDS = 65536
_LIBVIRT_DRIVERS = "libvirt/connection-driver/libvirt_driver_qemu.so"
_UML_ENVIRONMENT = "uml-rxe"
_SYSTEM_PATH = ("/usr/sbin", "/sbin")
_USERNS_SWITCHES = (
    (Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"), "0"),
    (Path("/proc/sys/kernel/unprivileged_userns_clone"), "1"),
)


class Status(StrEnum):
    """What a check says."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    :param name: what was looked at
    :param detail: what was found
    :param fix: what to do about it; a command where one does it
    """

    name: str
    status: Status
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class _Tool:
    """A program, the package that has it, and what it is for."""

    program: str
    package: str
    purpose: str
    needed: Status = Status.FAIL


_TOOLS = (
    # Each of these two is needed by one carrier; what that comes to is tried last.
    _Tool("qemu-system-x86_64", "qemu-system-x86", "runs virtual machines", Status.WARN),
    _Tool("slirp4netns", "slirp4netns", "leads into machines of User Mode Linux", Status.WARN),
    _Tool("mmdebstrap", "mmdebstrap", "builds images"),
    _Tool("mke2fs", "e2fsprogs", "makes machines' scratch disks"),
    _Tool("ssh", "openssh-client", "reaches machines"),
    _Tool("ssh-keygen", "openssh-client", "makes keys for each run"),
    _Tool("tcpdump", "tcpdump", "looks at captures by hand", Status.WARN),
    _Tool("git", "git", "fetches driver sources by URL and commit", Status.WARN),
)

_USER_TOOLS = (
    _Tool("newuidmap", "uidmap", "lets an ordinary user build images"),
    _Tool("bwrap", "bubblewrap", "lets an ordinary user build drivers"),
)


def diagnose() -> list[Check]:
    """Look at everything that providing an environment depends on."""
    return list(_checks())


def _checks() -> Iterator[Check]:
    root = os.geteuid() == 0
    yield check_python()
    yield check_kvm(kvm_probe.probe())
    yield from map(check_tool, _TOOLS)
    yield check_libvirt_driver()
    yield check_libvirt_binding()
    if root:
        yield check_libvirt_user()
    else:
        yield from map(check_tool, _USER_TOOLS)
        yield check_user_namespaces()
        user = pwd.getpwuid(os.geteuid())
        for file in (Path("/etc/subuid"), Path("/etc/subgid")):
            yield check_subordinate_ids(file, user.pw_name, user.pw_uid)
        yield check_id_map()
    yield _from_errors("Debian's keys", lambda: str(mirror.keyring()))
    yield _from_errors("Debian mirror", mirror.debian_mirror)
    yield check_disk(paths.cache())
    yield check_memory(_available_memory())
    machine = load_environment(_UML_ENVIRONMENT)
    yield from check_carriers(try_vm(), try_uml(machine.image, machine.machine))


def check_carriers(vm: Trial, uml: Trial) -> Iterator[Check]:
    """Which carriers work. A run that names no environment goes on with the one that does."""
    for name, tried, other, instead in (
        ("virtual machine", vm, uml, "User Mode Linux"),
        ("User Mode Linux", uml, vm, "virtual machines"),
    ):
        if tried.works is not False:
            yield Check(name, Status.OK, tried.found)
        else:
            dead_end = other.works is False
            go_on = "one of the two has to work" if dead_end else f"runs go on with {instead}"
            # The errors of a run lead here.
            fix = tried.hint if "doctor" not in tried.hint else ""
            fix = fix or f"see what is missing above; {go_on}"
            yield Check(name, Status.FAIL if dead_end else Status.WARN, tried.found, fix)


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Whether Python is new enough."""
    text = ".".join(map(str, version))
    if version >= _PYTHON:
        return Check("Python", Status.OK, text)
    needed = ".".join(map(str, _PYTHON))
    return Check("Python", Status.FAIL, text, f"use Python {needed} or later")


def check_kvm(verdict: kvm_probe.KvmVerdict) -> Check:
    """Whether machines run natively. It works without, at a tenth of the speed."""
    if verdict.works:
        return Check("KVM", Status.OK, verdict.reason)
    if "may not be opened" in verdict.reason:
        fix = f"sudo usermod --append --groups kvm {_user_name()}, and log in again"
    else:
        fix = "none needed: machines are emulated (TCG), which is slower"
    return Check("KVM", Status.WARN, verdict.reason, fix)


def check_tool(tool: _Tool) -> Check:
    """Whether a program is installed."""
    path = shutil.which(tool.program, path=_search_path())
    if path:
        return Check(tool.program, Status.OK, path)
    return Check(tool.program, tool.needed, f"not found; it {tool.purpose}", _install(tool.package))


def check_libvirt_driver(library_root: Path = Path("/usr/lib")) -> Check:
    """Whether libvirt's QEMU driver is installed; it is loaded at run time."""
    name = "libvirt's QEMU driver"
    for place in ("", "*/", "../lib64/"):
        for file in library_root.glob(place + _LIBVIRT_DRIVERS):
            return Check(name, Status.OK, str(file))
    return Check(name, Status.WARN, "not found", _install("libvirt-daemon-driver-qemu"))


def check_libvirt_binding() -> Check:
    """Whether Python can talk to libvirt."""
    name = "libvirt-python"
    if find_spec("libvirt") is None:
        return Check(name, Status.WARN, "not installed", "make setup")
    try:
        version = import_module("libvirt").getVersion()
    except ImportError as e:
        return Check(name, Status.WARN, str(e), "make setup, after removing .venv")
    return Check(name, Status.OK, f"libvirt {version // 10**6}.{version // 1000 % 1000}")


def check_libvirt_user() -> Check:
    """Whether the user exists that libvirt's QEMU driver looks up at its start, as root."""
    name = "user libvirt-qemu"
    try:
        entry = pwd.getpwnam("libvirt-qemu")
    except KeyError:
        fix = "useradd --system --user-group --no-create-home libvirt-qemu"
        return Check(name, Status.WARN, "does not exist", fix)
    return Check(name, Status.OK, f"uid {entry.pw_uid}")


def check_user_namespaces() -> Check:
    """Whether this ordinary user can be root in a user namespace, tried with bubblewrap."""
    name = "user namespaces"
    trial = "bwrap --unshare-user --uid 0 --gid 0 --ro-bind / / true"
    try:
        result = process.run(trial.split(), timeout=30, check=False)
    except ProvisionError:
        return Check(name, Status.FAIL, "not tried: there is no bwrap", _install("bubblewrap"))
    if result.ok:
        return Check(name, Status.OK, "allowed")
    detail = "this user may not make any: " + (result.output.strip() or f"status {result.status}")
    for switch, wanted in _USERNS_SWITCHES:
        if switch.exists() and switch.read_text().strip() != wanted:
            setting = f"kernel.{switch.name}={wanted}"
            return Check(name, Status.FAIL, detail, f"sudo sysctl {setting}, or run as root")
    return Check(name, Status.FAIL, detail, "run as root")


def check_subordinate_ids(file: Path, user: str, uid: int) -> Check:
    """Whether a user has ids for the users of an image, subuid(5)."""
    try:
        lines = [line.split(":") for line in file.read_text().splitlines()]
    except OSError:
        lines = []
    counts = [int(f[2]) for f in lines if len(f) == 3 and f[0] in (user, str(uid))]
    have = max(counts, default=0)
    if have >= _SUBORDINATE_IDS:
        return Check(str(file), Status.OK, f"{have} ids for {user}")
    option = "--add-subuids" if file.name == "subuid" else "--add-subgids"
    first = 100_000 + _SUBORDINATE_IDS * max(0, uid - 1000)
    return Check(
        str(file),
        Status.FAIL,
        f"{have} ids for {user}, building images needs {_SUBORDINATE_IDS}",
        f"sudo usermod {option} {first}-{first + _SUBORDINATE_IDS - 1} {user}",
    )


def check_id_map(trial: Sequence[str] = ("mmdebstrap", "--unshare-helper", "true")) -> Check:
    """Whether this ordinary user can have those ids, tried with mmdebstrap.

    In a container, set-user-id programs may not write the map of ids of a new user namespace.
    """
    name = "map of user ids"
    try:
        result = process.run(trial, timeout=30, check=False)
    except ProvisionError:
        return Check(name, Status.FAIL, "not tried: there is no mmdebstrap", _install("mmdebstrap"))
    if result.ok:
        return Check(name, Status.OK, "allowed")
    found = next(iter(result.output.strip().splitlines()), f"status {result.status}")
    fix = (
        "run as root; or, as root: chmod u-s /usr/bin/new?idmap;"
        " setcap cap_setuid=ep /usr/bin/newuidmap; setcap cap_setgid=ep /usr/bin/newgidmap"
    )
    return Check(name, Status.FAIL, f"images cannot be built: {found}", fix)


def check_disk(cache: Path) -> Check:
    """Whether there is room for an image, a build root and a driver."""
    name = "disk space"
    place = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(place).free / _GIB
    detail = f"{free:.1f} GiB free in {cache}"
    fix = "make room, or set SMBDIRECT_TESTBED_CACHE to a directory on a larger disk"
    if not os.access(place, os.W_OK):
        return Check(name, Status.FAIL, f"{place} is not writable", fix)
    if free >= _DISK_WANTED:
        return Check(name, Status.OK, detail)
    return Check(name, Status.WARN if free >= _DISK_NEEDED else Status.FAIL, detail, fix)


def check_memory(available: float) -> Check:
    """Whether a machine of the default size fits.

    :param available: GiB
    """
    detail = f"{available:.1f} GiB available"
    if available >= _MEMORY_WANTED:
        return Check("memory", Status.OK, detail)
    fix = "end something, or lower memory under [machine] in the environment"
    status = Status.WARN if available >= _MEMORY_NEEDED else Status.FAIL
    return Check("memory", status, detail, fix)


def _available_memory() -> float:
    """GiB that a new process can have, proc_meminfo(5), or less if a container limits it."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{f}" for f in ("max", "current"))
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        available = min(available, int(text) - int(used.read_text()))
    return available / _GIB


def _from_errors(name: str, look: Callable[[], str]) -> Check:
    """A check made of a function that returns what it found or raises."""
    try:
        return Check(name, Status.OK, look())
    except ProvisionError as e:
        return Check(name, Status.FAIL, e.message, e.hint or "")


def _install(package: str) -> str:
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install {package}"


def _search_path() -> str:
    """Where our own commands look, and where an ordinary user's shell does not."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_PATH))


def _user_name() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name
