"""A share of the scenarios, for a run in several environments at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from smbdirect_testbed.plugin.usual_seconds import usual_seconds

_UNKNOWN_SECONDS = 2.0
_UNKNOWN_SUITE_SECONDS = 10.0
_LARGE = 0.6
"""Of an even share: a file that takes longer is divided, although its fixtures are set up twice."""


@dataclass(frozen=True)
class Share:
    """One of several shares, which are the same in every process that computes them.

    :param number: from 0
    :param of: how many there are
    :param kind: what scenarios took their usual time in; see :func:`usual_seconds`
    """

    number: int
    of: int
    kind: str = ""

    def pick(self, items: Sequence[pytest.Item]) -> list[pytest.Item]:
        """The scenarios of this share, in their order; each is in exactly one share."""
        seconds = usual_seconds(self.kind)
        weight = {item.nodeid: _weight(item, seconds) for item in items}
        files: dict[Path, list[pytest.Item]] = {}
        for item in items:
            files.setdefault(item.path, []).append(item)
        large = _LARGE * sum(weight.values()) / self.of
        pieces: list[list[pytest.Item]] = []
        for in_file in files.values():
            whole = sum(weight[i.nodeid] for i in in_file) <= large
            pieces += [in_file] if whole else [[item] for item in in_file]
        shares: list[list[pytest.Item]] = [[] for _ in range(self.of)]
        loads = [0.0] * self.of
        # The longest first, each to the share that has least.
        for piece in sorted(pieces, key=lambda p: -sum(weight[i.nodeid] for i in p)):
            least = loads.index(min(loads))
            shares[least] += piece
            loads[least] += sum(weight[i.nodeid] for i in piece)
        mine = {item.nodeid for item in shares[self.number]}
        return [item for item in items if item.nodeid in mine]


def _weight(item: pytest.Item, seconds: Mapping[str, float]) -> float:
    suite = "torture" in getattr(item, "fixturenames", ())
    return seconds.get(item.nodeid, _UNKNOWN_SUITE_SECONDS if suite else _UNKNOWN_SECONDS)
