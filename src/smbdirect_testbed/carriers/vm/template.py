"""Templates: machines that were prepared, stopped and saved, to be cloned.

A template is an entry of the cache: the machine's memory, the state of its devices, its scratch
disk, and what its console said. Its key holds all that it was made of, so that it is never out of
date. Memory is mapped by clones copy-on-write, so a template's files are never written again.

The memory lies in the cache's file system and not in ``/dev/shm``: this is small in containers, its
pages would be locked in memory, and the page cache serves it as fast.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from smbdirect_testbed.carriers.carrier import TemplatePlan
from smbdirect_testbed.carriers.vm.domain_xml import Accelerator
from smbdirect_testbed.carriers.vm.sparse_copy import checksum
from smbdirect_testbed.config.spec import MachineSpec
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.lib import cache, paths
from smbdirect_testbed.lib.progress import Progress

_VERSION = "1"
_KIND = "templates"
_KEPT = 10
"""Templates that stay in the cache, the last used ones: each takes some 300 MiB."""

_PROGRAM = (
    "agent/*.py",
    "carriers/*.py",
    "carriers/vm/*.py",
    "environment/template_contents.py",
    "evidence/capture.py",
    "machine/*.py",
    "smb/*.py",
)
_MANIFEST = "template.json"
_CHECKED = "checked.json"
_FILES = ("ram", "state", "scratch.img", "console.log")


class TemplateBroken(Exception):
    """A template's files have changed since it was made; the message is one line."""


@dataclass(frozen=True)
class Template:
    """A template in the cache.

    :param prepared: the result of its preparation
    :param boot_failures: attempts to boot it that failed before
    """

    directory: Path
    digest: str
    prepared: Mapping[str, str]
    boot_failures: tuple[str, ...]
    inode: int

    @property
    def ram(self) -> Path:
        """The memory: a sparse file."""
        return self.directory / "ram"

    @property
    def state(self) -> Path:
        """The state of the devices: QEMU's migration stream, without memory."""
        return self.directory / "state"

    @property
    def scratch(self) -> Path:
        """The image of the scratch disk, its file system unmounted."""
        return self.directory / "scratch.img"

    @property
    def console(self) -> Path:
        """The output of the console until it was saved."""
        return self.directory / "console.log"

    def is_in_place(self) -> bool:
        """Whether the files are still those of the moment when this was read."""
        try:
            return self.ram.stat().st_ino == self.inode
        except FileNotFoundError:
            return False

    def discard(self, progress: Progress) -> None:
        """Remove it from the cache; running clones are not harmed."""
        with _lock(self.directory, progress):
            if self.is_in_place():
                cache.remove(self.directory)


def key(
    plan: TemplatePlan,
    image: Image,
    spec: MachineSpec,
    accelerator: Accelerator,
    options: Sequence[str],
) -> str:
    """A digest of everything that a template is made of.

    It is computed at every start, so of large files it has only size and time.
    """
    files = [image.root, image.kernel, image.initramfs, *_hypervisor()]
    parts = [
        *(_VERSION, image.digest, accelerator, repr(replace(spec, ssh_port=0)), *options),
        *(str(_identity(f)) for f in files),
        *(f"{p.relative_to(paths.PACKAGE)}{p.read_text()}" for p in _program()),
        *plan.parts,
    ]
    if accelerator is Accelerator.KVM:
        # The guest has seen this processor through this kernel.
        parts += [os.uname().release, *_processor()]
    return cache.digest(parts)


def provide(digest: str, make: Callable[[Path], None], progress: Progress) -> Template:
    """The template of a key, which is made first if it is missing or broken.

    :param make: fills a directory and calls :func:`write_manifest` last
    """
    name = digest[:16]
    entry = paths.cache() / _KIND / name
    if entry.is_dir():
        try:
            return _used(read(entry))
        except TemplateBroken:
            with _lock(entry, progress):
                _remove_if_broken(entry, progress)
    made: list[Path] = []

    def make_it(directory: Path) -> None:
        make(directory)
        made.append(directory)

    cache.provide(_KIND, name, make_it, progress)
    if made:
        _prune(entry)
    try:
        return _used(read(entry))
    except TemplateBroken as e:
        raise RuntimeError(f"the template just made is broken: {e}") from e


def write_manifest(
    directory: Path, digest: str, prepared: Mapping[str, str], boot_failures: Sequence[str]
) -> None:
    """Write the manifest of a template's directory, as its last file."""
    files = {
        name: {"size": (directory / name).stat().st_size, "checksum": checksum(directory / name)}
        for name in _FILES
    }
    manifest = {
        "digest": digest,
        "prepared": dict(prepared),
        "boot_failures": list(boot_failures),
        "files": files,
    }
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def read(directory: Path) -> Template:
    """The template in a directory.

    Its files are compared with their checksums if they were touched since the last time, and once
    after each start of this computer: a crash may have lost data that was not on the disk yet.

    :raises TemplateBroken: a file is missing or changed
    """
    try:
        manifest: dict[str, Any] = json.loads((directory / _MANIFEST).read_text())
        template = Template(
            directory,
            manifest["digest"],
            MappingProxyType(dict(manifest["prepared"])),
            tuple(manifest["boot_failures"]),
            (directory / "ram").stat().st_ino,
        )
        stamp = _stamp(directory)
        for name, facts in manifest["files"].items():
            if stamp[name][0] != facts["size"]:
                raise TemplateBroken(
                    f"{name} has {stamp[name][0]} bytes instead of {facts['size']}"
                )
        if _read_stamp(directory) != stamp:
            for name, facts in manifest["files"].items():
                if checksum(directory / name) != facts["checksum"]:
                    raise TemplateBroken(f"{name} has changed")
            # Two machines of one run may read it at once.
            new = directory / f"{_CHECKED}.{uuid4().hex}"
            new.write_text(json.dumps(stamp))
            new.replace(directory / _CHECKED)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise TemplateBroken(f"it cannot be read: {e}") from e
    return template


def _stamp(directory: Path) -> dict[str, list[int | str]]:
    """Data that change if a file is touched or this computer is restarted."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    stamp: dict[str, list[int | str]] = {"boot": [boot]}
    for name in _FILES:
        found = (directory / name).stat()
        stamp[name] = [found.st_size, found.st_ino, found.st_mtime_ns]
    return stamp


def _read_stamp(directory: Path) -> object:
    try:
        return json.loads((directory / _CHECKED).read_text())
    except (OSError, ValueError):
        return None


def _remove_if_broken(entry: Path, progress: Progress) -> None:
    try:
        # Another run may have repaired it while we waited for the lock.
        read(entry)
    except TemplateBroken as e:
        if entry.exists():
            progress.say(f"template {entry.name} is broken ({e}); making it again")
            cache.remove(entry)


def _used(template: Template) -> Template:
    os.utime(template.directory)
    return template


def _prune(new: Path) -> None:
    """Remove the least recently used templates."""
    others = [p for p in new.parent.glob("[!.]*") if p != new]
    for old in sorted(others, key=_last_used, reverse=True)[_KEPT - 1 :]:
        cache.remove(old)


def _last_used(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _lock(entry: Path, progress: Progress) -> Any:
    return cache.lock(f"{_KIND}-{entry.name}", progress, f"{_KIND}/{entry.name}")


def _program() -> list[Path]:
    """The files of this package that decide about a template's contents.

    :raises FileNotFoundError: a pattern finds nothing, so that templates could be out of date
    """
    found: list[Path] = []
    for pattern in _PROGRAM:
        files = sorted(paths.PACKAGE.glob(pattern))
        if not files:
            raise FileNotFoundError(f"{pattern} finds no file in {paths.PACKAGE}")
        found += files
    return found


def _hypervisor() -> list[Path]:
    """QEMU, and the part of libvirt that writes its command line: asking them would take longer."""
    name = "libvirt/connection-driver/libvirt_driver_qemu.so"
    drivers = {d for pattern in ("lib*", "lib/*") for d in Path("/usr").glob(f"{pattern}/{name}")}
    qemu = shutil.which("qemu-system-x86_64")
    return [*([Path(qemu)] if qemu else []), *sorted(drivers)]


def _identity(file: Path) -> tuple[str, int, int]:
    found = file.resolve().stat()
    # Without fractions, which an archive of the cache need not keep.
    return file.name, found.st_size, int(found.st_mtime)


def _processor() -> list[str]:
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    return [line for line in lines if line.startswith(("model name", "flags", "stepping"))]
