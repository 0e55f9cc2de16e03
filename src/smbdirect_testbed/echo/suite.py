"""All checks, and running them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from smbdirect_testbed.echo import checks_echo, checks_malformed, checks_rdma
from smbdirect_testbed.echo.checking import Check, CheckResult, Context, Target, run_check

ALL_CHECKS: Sequence[Check] = (
    *checks_echo.CHECKS.all,
    *checks_rdma.CHECKS.all,
    *checks_malformed.CHECKS.all,
)
"""In the order in which they run."""


def run_suite(target: Target, *, seed: int, only: str = "") -> Iterator[CheckResult]:
    """Run the checks one after the other; a result comes as soon as there is one.

    :param seed: of the data: the same seed makes the same, also of one check alone
    :param only: a part of the names of those to run
    """
    context = Context(target)
    try:
        for check in ALL_CHECKS:
            if only in check.name:
                context.random.seed(f"{seed} {check.name}")
                yield run_check(check, context)
    finally:
        context.drop()
