"""The lines of source behind the places of a kernel's trace, from modules' debugging information.

What the kernel's own ``scripts/faddr2line`` does: a place is a function, an offset in it, and the
function's size, by which functions of one name are told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from smbdirect_testbed.kernel.splats.frames import Frame

if TYPE_CHECKING:
    from smbdirect_testbed.kernel.module_lines import ModuleLines


class SourceLines:
    """Lines of modules that were built with debugging information.

    :param modules: files by the modules' names; what is not there has no lines
    """

    def __init__(self, modules: Mapping[str, Path]) -> None:
        self._files = modules
        self._modules: dict[str, ModuleLines | None] = {}

    def of(self, frame: Frame) -> str:
        """``fs/smb/smbdirect/connection.c:77``; "" where that is not known."""
        module = self._module(frame.module)
        return module.line(frame) if module else ""

    def _module(self, name: str) -> ModuleLines | None:
        if name not in self._modules:
            file = self._files.get(name)
            self._modules[name] = _lines_of(file) if file and file.is_file() else None
        return self._modules[name]


def _lines_of(module: Path) -> ModuleLines:
    # With it comes all that reads debugging information; most runs have no trace to explain.
    from smbdirect_testbed.kernel.module_lines import ModuleLines

    return ModuleLines(module)
