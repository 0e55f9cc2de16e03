"""What tells one mistake of a kernel's from another, wherever and whenever it shows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from smbdirect_testbed.kernel.splats.frames import Frame, first_trace, places_in
from smbdirect_testbed.kernel.splats.table import RULED, SplatKind

_FUNCTIONS = 5
_LONGEST = 80
_TASKS = (
    (r"\btask \S+:\d+", "task"),
    (r"\[\S+:\d+\]", ""),
    (r"\bprocess \d+ \(.*", "process"),
    (r"\b(?:in )?process \S+", "process"),
    (r"\bComm: ?\S+", ""),
    (r"(?<=: )\S+/\d+(?:/0x[0-9a-f]+)?(?=\s|$)", ""),
    (r"^\S+(?=: (?:page|vmalloc)\S* (?:allocation|error))", ""),
)
_RACE = re.compile(r"KCSAN: .* in (\w+) / (\w+)$")
_NUMBERS = re.compile(r"\b(?:0x)?[0-9a-f]*\d[0-9a-f]*\b")


def fingerprint(kind: SplatKind, title: str, first: str, trace: Sequence[str]) -> str:
    """A short text: the kind, and the innermost functions of the trace.

    It has neither addresses nor numbers, neither tasks nor times.

    :param title: the report's
    :param first: the first of its lines
    :param trace: all of its lines
    """
    # At its first byte a function is somebody's timer or work item, and not where it went wrong.
    said = [place for place in places_in(title) if place.offset != 0]
    names = _names([*_racing(title), *said, *trace_of(kind, trace)])
    if not names:
        # Cut off, or of locks alone: where they were taken.
        names = _names([place for line in trace for place in places_in(line)])
    return ":".join((kind, *(names[:_FUNCTIONS] or [_without_numbers(first)])))


def trace_of(kind: SplatKind, lines: Sequence[str]) -> list[Frame]:
    """The places of a report's trace, from the innermost one."""
    interrupted = kind in (SplatKind.RCU_STALL, SplatKind.LOCKUP)
    return first_trace(lines, interrupted=interrupted, headless=kind in RULED)


def _racing(title: str) -> list[Frame]:
    """The two functions that get in each other's way, in the order of their names."""
    found = _RACE.search(title)
    return [Frame(found[1]), Frame(found[2])] if found else []


def _names(places: Sequence[Frame]) -> list[str]:
    """The functions' names, each once, without machinery."""
    names = [place.base for place in places if not place.is_machinery]
    return list(dict.fromkeys(names))


def _without_numbers(title: str) -> str:
    for pattern, replacement in _TASKS:
        title = re.sub(pattern, replacement, title)
    return _NUMBERS.sub("#", title).strip()[:_LONGEST]
