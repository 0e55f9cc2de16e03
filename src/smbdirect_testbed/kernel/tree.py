"""A user's kernel tree: its version, and the files that User Mode Linux is built from.

A tree has ninety thousand files. A run reads only those that were edited since the last run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from smbdirect_testbed.config import rdma
from smbdirect_testbed.lib.errors import ProvisionError, UsageError

_FULL = ("Makefile", "Kconfig", "include/linux/kernel.h", "kernel/fork.c", "arch/um/Makefile")
_VERSION_LINE = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(\S*)", re.M)

_ARCHITECTURES = {"um", "x86"}
_NOT_READ = {"LICENSES", "tools/perf", "tools/testing"}
UNUSED_DRIVERS = (
    *("accel", "acpi", "clk", "comedi", "crypto", "gpu", "hid", "hwmon", "iio", "input", "md"),
    *("media", "mfd", "mtd", "net/ethernet", "net/wireless", "phy", "pinctrl", "platform"),
    *("scsi", "soc", "staging", "usb", "video"),
)
"""Directories below ``drivers`` that our kernels do not need."""

_KCONFIG = re.compile(r"Kconfig")
_RULES = re.compile(r"Kconfig|Makefile|Kbuild")
_ONLY = {
    # The driver is built separately.
    **dict.fromkeys(("fs/smb", *rdma.BUILT), _KCONFIG),
    # Our kernels do not need these, but kconfig and make read some of their files.
    **dict.fromkeys(("Documentation", "rust", "samples", "sound"), _RULES),
    **dict.fromkeys((f"drivers/{name}" for name in UNUSED_DRIVERS), _RULES),
}
"""Directories in which only some files are read."""

BUILT = re.compile(
    r"^\.|\.(o|ko|a|so|mod|mod\.c|order|symvers|dtb|s|lex\.c|tab\.[ch]|asn1\.[ch]|orig|rej)$|~$"
)
"""Names of build products that lie among a tree's sources."""

_BUILT_DIRECTORY = re.compile(r"(^|/)include/(config|generated)(/|$)")
_WATCHED = (
    *("arch/um", "arch/x86", "block", "crypto", "drivers/base", "drivers/block"),
    *("drivers/infiniband", "drivers/net", "drivers/pci", "drivers/tty", "drivers/virtio", "fs"),
    *("include", "init", "io_uring", "ipc", "kernel", "lib", "mm", "net", "security"),
)
"""Directories in which a save is worth a new kernel."""

_JUST_NOW = 50_000_000
"""Nanoseconds. Two writes within this time may leave a file with the same times."""

_Record = dict[str, list[int | str]]
"""For each file its digest, and size, times and mode, which reveal later writes."""


@dataclass(frozen=True)
class Snapshot:
    """The contents of a tree at one moment.

    :param files: digest of content and mode by name
    :param identity: equal for two only if all files are equal
    """

    files: Mapping[str, str]
    identity: str


def tree_version(tree: Path) -> str | None:
    """A tree's kernel version from its Makefile: ``7.3.4``, ``7.4.0-rc1``.

    :returns: None for a part of a tree that has no such Makefile
    """
    try:
        text = (tree / "Makefile").read_text(errors="replace")[:2000]
    except OSError:
        return None
    parts = {m[1]: m[2] for m in _VERSION_LINE.finditer(text)}
    if not {"VERSION", "PATCHLEVEL"} <= parts.keys():
        return None
    number = [parts[key] for key in ("VERSION", "PATCHLEVEL", "SUBLEVEL") if parts.get(key)]
    return ".".join(number) + parts.get("EXTRAVERSION", "")


def numbers(version: str | None) -> list[str]:
    """The part of a version that tells kernels apart: ``["7", "3"]``."""
    return re.findall(r"\d+", version or "")[:2]


def is_full(tree: Path) -> bool:
    """Whether a whole kernel can be built from a tree, and not the driver alone."""
    return all((tree / name).is_file() for name in _FULL)


def is_built(file: Path) -> bool:
    """Whether a file below a tree was made by building in it."""
    return bool(BUILT.search(file.name) or _BUILT_DIRECTORY.search(file.parent.as_posix()))


def watched_directories(tree: Path) -> list[Path]:
    """The directories to watch in a full tree that User Mode Linux is built from."""
    return [tree / name for name in _WATCHED]


def read_tree(tree: Path, record: Path) -> Snapshot:
    """Read all files that User Mode Linux is built from, without the driver's.

    Only files that were written since the last time are really read.

    :param record: a file that remembers what was read
    :raises UsageError: a file cannot be read
    """
    before, identity = _read_record(record)
    now = time.time_ns()
    after: _Record = {}
    try:
        for name, stat in _source_files(tree):
            known = before.get(name)
            if known and known[:-1] == stat:
                after[name] = known
            else:
                settled = now - max(stat[1:3]) > _JUST_NOW
                after[name] = [*(stat if settled else ()), _digest(tree / name, stat)]
    except OSError as e:
        raise UsageError(f"driver: cannot read {e.filename}: {e.strerror}") from e
    files = {name: str(known[-1]) for name, known in after.items()}
    if after != before:
        lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(files.items()))
        identity = hashlib.sha256(lines.encode()).hexdigest()
        _write_record(record, after, identity)
    return Snapshot(files, identity)


def require_inside(tree: Path, file: Path) -> None:
    """Raise UsageError if a file of a tree is elsewhere, and only a link is in the tree.

    Otherwise the author of the tree could have a build read files of the user who builds it.
    """
    if not file.resolve().is_relative_to(tree.resolve()):
        raise UsageError(
            f"driver: {file} leads out of the tree",
            hint="put a copy of the file there",
        )


def source_names(tree: Path) -> set[str]:
    """The names of a tree's files that a kernel is built from, without build products."""
    return {name for name, _ in _source_files(tree)}


def _source_files(tree: Path) -> Iterator[tuple[str, list[int]]]:
    """Each name with the data that reveals a write without reading the file."""
    directories: list[tuple[str, re.Pattern[str] | None]] = [("", None)]
    while directories:
        above, only = directories.pop()
        with os.scandir(tree / above) as entries:
            for entry in entries:
                name = above + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if _is_looked_into(entry.name, name):
                        directories.append((f"{name}/", only or _ONLY.get(name)))
                elif (not only or only.match(entry.name)) and _is_source(entry):
                    if entry.is_symlink():
                        require_inside(tree, Path(entry.path))
                    stat = entry.stat()
                    times = [stat.st_mtime_ns, stat.st_ctime_ns]
                    yield name, [stat.st_size, *times, stat.st_mode & 0o100]


def _is_source(entry: os.DirEntry[str]) -> bool:
    return not BUILT.search(entry.name) and entry.is_file()


def _is_looked_into(last: str, name: str) -> bool:
    if last.startswith(".") or name in _NOT_READ:
        return False
    if last in ("config", "generated") and _BUILT_DIRECTORY.search(name):
        return False
    above, _, architecture = name.partition("/")
    return above != "arch" or "/" in architecture or architecture in {"", *_ARCHITECTURES}


def _digest(file: Path, stat: list[int]) -> str:
    kind = "x" if stat[3] else "-"
    return kind + hashlib.sha256(file.read_bytes()).hexdigest()[:32]


def _read_record(record: Path) -> tuple[_Record, str]:
    try:
        content = json.loads(record.read_text())
        return content["files"], content["identity"]
    except (FileNotFoundError, ValueError, KeyError):
        return {}, ""


def _write_record(record: Path, files: _Record, identity: str) -> None:
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        new = record.with_suffix(f".{os.getpid()}.new")
        new.write_text(json.dumps({"identity": identity, "files": files}))
        new.replace(record)
    except OSError as e:
        raise ProvisionError(f"cannot write {record}: {e.strerror}") from e
