"""Scenarios in which the kernel is known to complain about itself."""

from __future__ import annotations

import pytest

from smbdirect_testbed.machine.kernel_log import Splat
from smbdirect_testbed.plugin.markers import OLD_NAMES

_MARKER = "known_splat"
_NAMES = {_MARKER} | {old for old, new in OLD_NAMES.items() if new == _MARKER}


def expect(
    item: pytest.Item, report: pytest.TestReport, splats: list[Splat], notes: list[str]
) -> tuple[list[Splat], str]:
    """Judge the kernel's reports of a scenario marked ``known_splat(function, reason)``.

    The report becomes one of a known failure if the kernel complained in that function. With
    ``sometimes=True`` it may also pass.

    :param splats: what the kernel reported
    :param notes: gets a line if the marker has its old name
    :returns: those that are not the known one, and what is wrong if that did not come
    """
    marker = next((m for m in item.iter_markers() if m.name in _NAMES), None)
    if marker is None or report.when != "call":
        return splats, ""
    if marker.name != _MARKER:
        file = item.nodeid.partition("::")[0]
        note = f"{file}: the marker {marker.name} is called {_MARKER} now; the old name works, too"
        if note not in notes:
            notes.append(note)
    function, reason = marker.args
    others = [s for s in splats if not any(function in line for line in (s.title, *s.trace))]
    if not report.passed or others:
        return others, ""
    if not splats:
        if marker.kwargs.get("sometimes"):
            return [], ""
        return [], f"the kernel did not complain in {function}: take the mark {marker.name} away"
    report.outcome, report.wasxfail = "skipped", f"reason: {reason}"
    return [], ""
