"""A user's kernel tree: which kernel it is, and which of its files a User Mode Linux is built from.

A tree has ninety thousand files, of which a run must not read more than were edited since the last.
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
"""Directories below ``drivers`` that no kernel of ours is built from."""

_KCONFIG = re.compile(r"Kconfig")
_RULES = re.compile(r"Kconfig|Makefile|Kbuild")
_ONLY = {
    # The driver is built on its own.
    **dict.fromkeys(("fs/smb", *rdma.BUILT), _KCONFIG),
    # No kernel of ours has these, yet kconfig and make look at them.
    **dict.fromkeys(("Documentation", "rust", "samples", "sound"), _RULES),
    **dict.fromkeys((f"drivers/{name}" for name in UNUSED_DRIVERS), _RULES),
}
"""Directories of which only some files are read."""

BUILT = re.compile(
    r"^\.|\.(o|ko|a|so|mod|mod\.c|order|symvers|dtb|s|lex\.c|tab\.[ch]|asn1\.[ch]|orig|rej)$|~$"
)
"""The names of what is built in a tree, beside its sources."""

_BUILT_DIRECTORY = re.compile(r"(^|/)include/(config|generated)(/|$)")
_WATCHED = (
    *("arch/um", "arch/x86", "block", "crypto", "drivers/base", "drivers/block"),
    *("drivers/infiniband", "drivers/net", "drivers/pci", "drivers/tty", "drivers/virtio", "fs"),
    *("include", "init", "io_uring", "ipc", "kernel", "lib", "mm", "net", "security"),
)
"""Directories whose files are worth a new kernel as soon as they are saved."""

_JUST_NOW = 50_000_000
"""Nanoseconds. Two writes that follow each other so soon may leave a file the same times."""

_Record = dict[str, list[int | str]]
"""Of each file size, times and mode, which tell whether it was written to, and its digest."""


@dataclass(frozen=True)
class Snapshot:
    """What a tree held at one moment.

    :param files: digest of content and mode by name
    :param identity: the same for two only if all files are
    """

    files: Mapping[str, str]
    identity: str


def tree_version(tree: Path) -> str | None:
    """A tree's kernel version as its Makefile has it: ``7.3.4``, ``7.4.0-rc1``.

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
    """What of a version tells how far kernels are from each other: ``["7", "3"]``."""
    return re.findall(r"\d+", version or "")[:2]


def is_full(tree: Path) -> bool:
    """Whether a whole kernel can be built from a tree, and not the driver alone."""
    return all((tree / name).is_file() for name in _FULL)


def is_built(file: Path) -> bool:
    """Whether a file below a tree was made by building in it."""
    return bool(BUILT.search(file.name) or _BUILT_DIRECTORY.search(file.parent.as_posix()))


def watched_directories(tree: Path) -> list[Path]:
    """Where to look for saves in a full tree, of which User Mode Linux is built."""
    return [tree / name for name in _WATCHED]


def read_tree(tree: Path, record: Path) -> Snapshot:
    """Look at all files that User Mode Linux is built from, without the driver's.

    Only those are read that were written to since the last time.

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


def source_names(tree: Path) -> set[str]:
    """The names of a tree's files that a kernel is built from, and of none that was built."""
    return {name for name, _ in _source_files(tree)}


def _source_files(tree: Path) -> Iterator[tuple[str, list[int]]]:
    """With each name, what tells without reading whether a file was written to."""
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
