"""The lines of source of one kernel module, from its debugging information."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from smbdirect_testbed.kernel.splats.frames import Frame

_WORK_DIRECTORY = re.compile(r"^.*?/build/[^/]+/")
_PADDING = 64
"""Bytes that may be between a function and the next one: for the kernel they are part of it."""


class ModuleLines:
    """One module's functions and lines."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def line(self, frame: Frame) -> str:
        """The line of a place; "" for none."""
        if frame.offset is None:
            return ""
        for unit, start in self._functions.get(frame.base, ()):
            if self._size(frame, start) is None:
                continue
            # A caller's address is that of what comes after the call.
            address = start + frame.offset - (0 if frame.exact else 1)
            if line := _line_at(unit, address, start):
                return line
        return ""

    def _size(self, frame: Frame, start: int) -> int | None:
        """The symbol's size, if it is the function that the kernel means."""
        sizes = self._symbols.get((frame.function, start), ())
        near = (s for s in sizes if frame.size is None or 0 <= frame.size - s < _PADDING)
        return next(near, None)

    @cached_property
    def _symbols(self) -> dict[tuple[str, int], list[int]]:
        """Sizes of functions by name and address in their section."""
        found: dict[tuple[str, int], list[int]] = {}
        with self._file.open("rb") as file:
            table = ELFFile(file).get_section_by_name(".symtab")
            for symbol in table.iter_symbols() if isinstance(table, SymbolTableSection) else ():
                if symbol["st_info"]["type"] == "STT_FUNC":
                    found.setdefault((symbol.name, symbol["st_value"]), []).append(
                        symbol["st_size"]
                    )
        return found

    @cached_property
    def _functions(self) -> dict[str, list[tuple[_Unit, int]]]:
        """Where functions begin, by name, with the lines of the file they are in."""
        found: dict[str, list[tuple[_Unit, int]]] = {}
        try:
            with self._file.open("rb") as file:
                elf = ELFFile(file)
                if not elf.has_dwarf_info(strict=True):
                    return {}
                dwarf = elf.get_dwarf_info()
                for unit in dwarf.iter_CUs():
                    lines = list(_sequences(dwarf, unit))
                    for name, start in _subprograms(unit):
                        found.setdefault(name, []).append((lines, start))
        except ELFError:
            return {}
        return found


_Sequence = list[tuple[int, str, int]]
"""Address, file, line: of one section, in the order of addresses; the last one is its end."""
_Unit = list[_Sequence]


def _line_at(unit: _Unit, address: int, start: int) -> str:
    for sequence in unit:
        if not sequence[0][0] <= start <= address < sequence[-1][0]:
            continue
        _, file, line = max((row for row in sequence[:-1] if row[0] <= address), key=lambda r: r[0])
        return f"{file}:{line}"
    return ""


def _subprograms(unit: Any) -> Iterator[tuple[str, int]]:
    for die in unit.get_top_DIE().iter_children():
        if die.tag == "DW_TAG_subprogram" and "DW_AT_low_pc" in die.attributes:
            named = die
            if "DW_AT_abstract_origin" in die.attributes:
                named = die.get_DIE_from_attribute("DW_AT_abstract_origin")
            if name := named.attributes.get("DW_AT_name"):
                yield name.value.decode(), die.attributes["DW_AT_low_pc"].value


def _sequences(dwarf: Any, unit: Any) -> Iterator[_Sequence]:
    program = dwarf.line_program_for_CU(unit)
    if program is None:
        return
    files = _file_names(unit, program.header)
    rows: _Sequence = []
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        rows.append((state.address, files.get(state.file, "?"), state.line))
        if state.end_sequence:
            if len(rows) > 1:
                yield rows
            rows = []


def _file_names(unit: Any, header: Any) -> dict[int, str]:
    """Names of the files of a unit by their numbers, as in the kernel's tree."""
    attribute = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
    top = attribute.value.decode() if attribute else ""
    old = header.version < 5
    directories = [top] if old else []
    directories += [d.decode() for d in header.include_directory]
    names = {}
    for number, entry in enumerate(header.file_entry, 1 if old else 0):
        path = Path(top, directories[entry.dir_index], entry.name.decode())
        names[number] = _WORK_DIRECTORY.sub("", str(path))
    return names
