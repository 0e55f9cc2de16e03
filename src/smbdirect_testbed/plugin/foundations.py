"""Scenarios stand on each other: what stands on something broken is not run, and says so.

A scenario file names those that it stands on::

    pytestmark = pytest.mark.stands_on("test_socket.py")

These run first. When enough of one of them is red, the rest would only fail for the same cause,
each after its deadline. All shares of a run know what failed in the others.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest

from smbdirect_testbed.config.spec import Transport

_MARKER = "stands_on"
_ENOUGH = 2
"""Scenarios of a file that failed, and not fewer than passed: the file is red."""
_ENOUGH_BROKE = 3
"""Scenarios of a file that broke their machines, and more than passed: the rest would, too."""


class Became(StrEnum):
    """What became of a scenario, for those that stand on it."""

    PASSED = "passed"
    FAILED = "failed"
    BROKE = "broke"
    """It failed and broke its machines, or hung."""


@dataclass
class Foundations:
    """Knows which files are red.

    :param log: a file that all shares of a run write to
    :param files: of all scenarios that were found, by name, and what each stands on
    """

    log: Path
    files: Mapping[str, frozenset[str]]
    _read: int = 0

    def __post_init__(self) -> None:
        self._became: dict[str, Counter[Became]] = {}
        self._first: dict[str, str] = {}

    def note(self, item: pytest.Item, became: Became) -> None:
        """Note what became of a scenario."""
        line = json.dumps({"file": item.path.name, "id": item.nodeid, "became": became})
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # One write: lines of several processes do not mix.
        with self.log.open("a", buffering=1 << 16) as file:
            file.write(f"{line}\n")

    def failures(self) -> int:
        """How many scenarios failed in all shares until now."""
        self._look()
        return sum(c[Became.FAILED] + c[Became.BROKE] for c in self._became.values())

    def broken(self, item: pytest.Item) -> str | None:
        """What a scenario stands on that is red, in one line; None if it can run."""
        self._look()
        own = item.path.name
        became = self._became.get(own, Counter())
        if became[Became.BROKE] >= max(_ENOUGH_BROKE, 1 + became[Became.PASSED]):
            return f"{self._first[own]} and others of {own} broke their machines"
        if _is_without_rdma(item):
            return None
        for file in sorted(all_below(own, self.files)):
            if self._is_red(file):
                return f"it stands on {file}, where {self._first[file]} failed, and others"
        return None

    def _is_red(self, file: str) -> bool:
        became = self._became.get(file, Counter())
        failed = became[Became.FAILED] + became[Became.BROKE]
        return failed >= _ENOUGH and failed >= became[Became.PASSED]

    def _look(self) -> None:
        try:
            with self.log.open() as file:
                file.seek(self._read)
                while (line := file.readline()).endswith("\n"):
                    noted = json.loads(line)
                    became = Became(noted["became"])
                    self._became.setdefault(noted["file"], Counter())[became] += 1
                    if became is not Became.PASSED:
                        name = noted["id"].partition("::")[2]
                        self._first.setdefault(noted["file"], name)
                    self._read = file.tell()
        except FileNotFoundError:
            return


def foundations_of(items: Sequence[pytest.Item]) -> dict[str, frozenset[str]]:
    """By the name of a scenario file, the names of those that it stands on.

    :raises pytest.UsageError: files stand on each other in a circle
    """
    found: dict[str, set[str]] = {}
    for item in items:
        named = {str(f) for marker in item.iter_markers(_MARKER) for f in marker.args}
        found.setdefault(item.path.name, set()).update(named)
    files = {file: frozenset(named) for file, named in found.items()}
    for file in files:
        if file in all_below(file, files):
            raise pytest.UsageError(f"{file} stands on itself, by {_MARKER}")
    return files


def foundations_first(
    items: Sequence[pytest.Item], files: Mapping[str, frozenset[str]]
) -> list[pytest.Item]:
    """Scenarios in an order in which those come first that others stand on; else as they were."""
    return sorted(items, key=lambda item: len(all_below(item.path.name, files)))


def all_below(file: str, files: Mapping[str, frozenset[str]]) -> set[str]:
    """All files that one stands on, by way of others, too."""
    found: set[str] = set()
    new = set(files.get(file, ()))
    while new:
        found |= new
        new = {f for name in new for f in files.get(name, ())} - found
    return found


def _is_without_rdma(item: pytest.Item) -> bool:
    """Whether a parameter of a scenario says that it does not use RDMA."""
    callspec = getattr(item, "callspec", None)
    values = callspec.params.values() if callspec else ()
    return any(value in (Transport.TCP, Transport.NBT) for value in values if _is_transport(value))


def _is_transport(value: object) -> bool:
    return isinstance(value, Transport)
