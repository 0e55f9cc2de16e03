"""The functions in a kernel's traces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from smbdirect_testbed.kernel.splats.machinery import is_machinery

_NAME = r"(?P<name>[A-Za-z_][\w.]*)"
_OFFSET = r"\+(?P<offset>0x[0-9a-f]+)/(?P<size>0x[0-9a-f]+)"
_MODULE = r"(?: \[(?P<module>[\w-]+))?"
_ADDRESS = r"(?:\[<[0-9a-f(ptrval)]*>\] )?"
_FRAME = re.compile(rf"^ ?{_ADDRESS}(?P<guess>\? )?{_NAME}{_OFFSET}{_MODULE}")
_INLINE = re.compile(rf"^ {{0,3}}{_NAME} \S+:\d+ \[inline\]$")
_OF_ARM = re.compile(
    rf"^{_ADDRESS}\(?(?P<inner>[A-Za-z_][\w.]*)\)? from {_ADDRESS}\(?{_NAME}{_OFFSET}"
)
_REGISTERS = re.compile(
    r"^(?:[ER]?IP: *(?:\w{4}:)?|[ER]IP +|PC is at |pc : |NIP |epc : ?)"
    rf"(?:\[<[0-9a-f]*>\] *)*{_NAME}(?:{_OFFSET}|\b){_MODULE}"
)
_SYMBOL = re.compile(rf"{_NAME}(?:{_OFFSET}|\(\)!$)")
_BEGINNINGS = ("Call Trace:", "Call trace:", "Backtrace:")
_STACKS = re.compile(
    r"Call [Tt]race:|Backtrace:|backtrace(?: \(crc \w+\))?:|stack backtrace:"
    r"|ref_tracker: .* users at$"
)

_AFTER_TRACE = re.compile(
    r"$|Allocated by |Freed by |Last potentially|The buggy |Memory state|Showing all locks"
    r"|---\[ end |={20}|Mem-Info:|Code: |task:"
)


@dataclass(frozen=True)
class Frame:
    """A place in a trace.

    :param function: as the kernel names it, with what the compiler appended
    :param offset: bytes from its beginning; None when the kernel did not say
    :param size: of the function in bytes
    :param module: without ``.ko``; "" for the kernel itself
    :param guess: the kernel is not sure that it is a caller's
    :param exact: the processor was there; otherwise it was to return there
    """

    function: str
    offset: int | None = None
    size: int | None = None
    module: str = ""
    guess: bool = False
    exact: bool = False

    @property
    def base(self) -> str:
        """The function's name in the source."""
        return self.function.partition(".")[0]

    @property
    def is_machinery(self) -> bool:
        """Whether the function is of those that lie between many mistakes and their reports."""
        return is_machinery(self.base)


def frame_in(line: str) -> Frame | None:
    """The place that a line of a trace names."""
    if found := _OF_ARM.match(line.strip()):
        return Frame(found["inner"])
    if found := _FRAME.match(line if line[:1] == " " else f" {line}") or _FRAME.match(
        f" {line.strip()}"
    ):
        return _made(found)
    if found := _INLINE.match(line):
        return Frame(found["name"])
    return None


def registers_in(line: str) -> Frame | None:
    """The place at which the processor was, in a line about its registers."""
    found = _REGISTERS.match(line)
    if not found or found["name"].startswith("0x"):
        return None
    return replace(_made(found), exact=True)


def places_in(line: str) -> Iterator[Frame]:
    """The places that a line in words names."""
    for found in _SYMBOL.finditer(line):
        yield Frame(found["name"], int(found["offset"], 16) if found["offset"] else None)


def begins_trace(line: str) -> bool:
    """Whether a trace follows a line."""
    return line.strip().startswith(_BEGINNINGS)


def first_trace(
    lines: Iterable[str], *, interrupted: bool = False, headless: bool = False
) -> list[Frame]:
    """The places of the first trace in a report, from the innermost one.

    :param interrupted: what matters is what an interrupt found running
    :param headless: no line says that a trace begins

    User Mode Linux shows every address on the stack and marks guesses with a question mark, as x86
    does. They count when there is nothing else; those at a function's first byte never do: they
    are pointers to functions and nobody's callers.
    """
    registers: Frame | None = None
    frames: list[Frame] = []
    in_trace = headless
    for line in lines:
        text = line.strip()
        if _STACKS.match(text):
            if frames:
                break
            in_trace = True
        elif interrupted and (text == "</IRQ>" or text == "<EOI>" or text == "</NMI>"):
            frames.clear()
        elif registers is None and not frames and (place := registers_in(text)):
            registers = place
        elif in_trace and (place := frame_in(line)):
            frames.append(place)
        elif frames and _AFTER_TRACE.match(text):
            break
    called = [f for f in frames if f.offset != 0]
    sure = [f for f in called if not f.guess]
    # With one sure frame of many, the kernel could not follow the stack.
    chosen = sure if len(sure) > 2 or not called else called
    return ([registers] if registers else []) + (chosen or frames)


def _made(found: re.Match[str]) -> Frame:
    parts = found.groupdict()
    return Frame(
        found["name"],
        int(parts["offset"], 16) if parts.get("offset") else None,
        int(parts["size"], 16) if parts.get("size") else None,
        parts.get("module") or "",
        bool(parts.get("guess")),
    )
