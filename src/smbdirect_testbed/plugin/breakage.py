"""Whether the machines can be used for another scenario, and how often they may be replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smbdirect_testbed.kernel.splats import Splat, SplatKind
from smbdirect_testbed.lib.errors import MachineDied, ProvisionError

if TYPE_CHECKING:
    from smbdirect_testbed.environment.environment import Environment

_SURVIVABLE = {
    SplatKind.WARNING,
    SplatKind.OUT_OF_MEMORY,
    SplatKind.CLOCK,
    SplatKind.LEAK,
    SplatKind.ALLOCATION,
    SplatKind.CHECKSUM,
}
MOST_IN_A_ROW = 3
"""Scenarios, one after the other, that break their machines: a fourth would do it as well."""
MOST_IN_A_RUN = 12
"""Machines that are replaced in one run."""


@dataclass
class Breakage:
    """Counts the scenarios that broke their machines.

    :param last: the last of them, and what it did
    """

    in_run: int = 0
    in_a_row: int = 0
    last: str = ""

    def broke(self, id: str, what: str) -> None:
        """A scenario broke its machines."""
        self.in_run += 1
        self.in_a_row += 1
        self.last = f"{id} broke its machine: {what}"

    def spared(self) -> None:
        """A scenario ran and left its machines fit for use."""
        self.in_a_row = 0

    def too_often(self) -> str | None:
        """Why there is to be no further machine; None while there may be one."""
        if self.in_a_row >= MOST_IN_A_ROW:
            return f"{self.in_a_row} scenarios in a row broke their machines; the last: {self.last}"
        if self.in_run >= MOST_IN_A_RUN:
            return f"{self.in_run} scenarios broke their machines; the last: {self.last}"
        return None


def unfit(environment: Environment) -> str | None:
    """Why an environment cannot be used for another scenario, in one line; None if it can.

    Looks whether its machines answer, its driver is loaded and its servers run: what a scenario
    that failed may have left undone, and the next ones would fail for.
    """
    try:
        environment.check()
    except MachineDied as e:
        return e.message
    except ProvisionError as e:
        return f"it left the environment unfit: {e.message}"
    return None


def suspicious(splats: Sequence[Splat]) -> str | None:
    """The kernel's report after which its kernel cannot be trusted; None if there is none.

    After what is survivable it goes on as before. After anything else its state is unknown, or the
    checker that reported has switched itself off, as lockdep does.
    """
    for splat in splats:
        if splat.kind not in _SURVIVABLE:
            return f"the kernel reported a {splat.kind}"
    return None
