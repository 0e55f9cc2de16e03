"""Scenarios in which the kernel is known to complain about itself."""

from __future__ import annotations

import pytest

from smbdirect_testbed.machine.kernel_log import Splat


def expect(
    item: pytest.Item, report: pytest.TestReport, splats: list[Splat]
) -> tuple[list[Splat], str]:
    """Judge the kernel's reports of a scenario marked ``kernel_mistake(function, reason)``.

    The report becomes one of a known failure if the kernel complained in that function. With
    ``sometimes=True`` it may also pass.

    :param splats: what the kernel reported
    :returns: those that are not the known mistake, and what is wrong if it was not made
    """
    marker = item.get_closest_marker("kernel_mistake")
    if marker is None or report.when != "call":
        return splats, ""
    function, reason = marker.args
    others = [s for s in splats if not any(function in line for line in (s.title, *s.trace))]
    if not report.passed or others:
        return others, ""
    if not splats:
        if marker.kwargs.get("sometimes"):
            return [], ""
        return [], f"the kernel did not complain in {function}: take the mark kernel_mistake away"
    report.outcome, report.wasxfail = "skipped", f"reason: {reason}"
    return [], ""
