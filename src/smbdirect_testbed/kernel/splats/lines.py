"""The kernel's lines in what a console shows."""

from __future__ import annotations

import re
from dataclasses import dataclass

_STAMP = re.compile(r"(?:<\d+>)?\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ?")

_PREFIX = re.compile(r"^kmemleak: (?= )")
"""Some parts of the kernel say their name in each line of a report, and not in the first alone."""


@dataclass(frozen=True)
class Line:
    """A line of the kernel's.

    :param text: without its time stamp
    :param number: of the console's line that it is in, from 0
    """

    text: str
    number: int


def kernel_lines(text: str) -> list[Line]:
    """The lines of a piece of kernel log or console.

    A line of a console is several of the kernel's when one begins after a login prompt or after
    another that was not ended.
    """
    found: list[Line] = []
    for number, line in enumerate(text.split("\n")):
        line = line.rstrip("\r\0").replace("\0", "")
        for part in _parts(line):
            found.append(Line(_PREFIX.sub("", part), number))
    return found


def _parts(line: str) -> list[str]:
    stamps = list(_STAMP.finditer(line)) if "[" in line else []
    if not stamps:
        return [line]
    parts = [line[: stamps[0].start()]] if stamps[0].start() else []
    ends = [stamp.start() for stamp in stamps[1:]] + [len(line)]
    return parts + [line[s.end() : end] for s, end in zip(stamps, ends, strict=True)]
