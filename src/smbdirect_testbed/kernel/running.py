"""The kernel that this computer runs, and its installed modules."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

_MODULES = Path("/lib/modules")
_LOADED = Path("/proc/modules")
_SYS = Path("/sys/module")


@dataclass(frozen=True)
class LoadedModule:
    """A line of ``/proc/modules``.

    :param users: the number of modules and other users that use it
    :param modules: the modules that use it
    """

    name: str
    users: int
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunningKernel:
    """A kernel, with its ``/lib/modules/RELEASE`` as modules.dep(5) describes it.

    :param release: as printed by ``uname -r``
    :param version: as printed by ``uname -v``; a distribution puts its package's version there
    :param directory: of its modules, if it is not the usual one
    """

    release: str = field(default_factory=lambda: os.uname().release)
    version: str = field(default_factory=lambda: os.uname().version)
    directory: Path | None = None

    @property
    def modules(self) -> Path:
        """The directory of its modules, which may be missing."""
        return self.directory or _MODULES / self.release

    @property
    def headers(self) -> Path | None:
        """The directory that modules are built against, if it is installed."""
        build = self.modules / "build"
        return build if (build / "Makefile").is_file() else None

    def has(self, name: str) -> bool:
        """Whether a module is built in, loaded, or can be loaded."""
        return name in self._built_in or name in self._files or (_SYS / name).is_dir()

    def is_built_in(self, name: str) -> bool:
        """Whether a module is built into the kernel."""
        return name in self._built_in

    def file(self, name: str) -> Path | None:
        """A module's file, which may be compressed; None if there is no file."""
        found = self._files.get(name)
        return self.modules / found[0] if found else None

    def below(self, places: Iterable[str]) -> list[str]:
        """The modules in some of its directories, such as ``crypto`` or ``drivers/infiniband``."""
        beginnings = tuple(f"kernel/{place}/" for place in places)
        return [name for name, (path, _) in self._files.items() if path.startswith(beginnings)]

    def closure(self, names: Iterable[str]) -> set[str]:
        """Modules and all their dependencies."""
        found: set[str] = set()
        for name in names:
            found.add(name)
            entry = self._files.get(name)
            found.update(_name(p) for p in (entry[1] if entry else ()))
        return found

    @cached_property
    def _files(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        files = {}
        for line in _lines(self.modules / "modules.dep"):
            path, _, needed = line.partition(":")
            files[_name(path)] = (path, tuple(needed.split()))
        return files

    @cached_property
    def _built_in(self) -> set[str]:
        return {_name(line) for line in _lines(self.modules / "modules.builtin")}


def loaded_modules() -> dict[str, LoadedModule]:
    """The loaded modules by name, the last loaded first."""
    found = {}
    for line in _lines(_LOADED):
        name, _, users, by, *_rest = line.split()
        modules = tuple(m for m in by.split(",") if m not in ("", "-", "[permanent]"))
        found[name] = LoadedModule(name, int(users) if users.isdecimal() else 0, modules)
    return found


def _name(path: str) -> str:
    """A module's name from its file: ``snd_pcm`` from ``a/snd-pcm.ko.xz``."""
    return path.strip().rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
