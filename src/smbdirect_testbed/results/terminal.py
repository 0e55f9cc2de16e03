"""The terminal output of a run: a line for each scenario."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from smbdirect_testbed.results.results import Outcome, ScenarioResult

_WORDS = {
    Outcome.PASSED: "PASS",
    Outcome.FAILED: "FAIL",
    Outcome.SKIPPED: "SKIP",
    Outcome.KNOWNFAIL: "KNOWNFAIL",
    Outcome.NOT_RUN: "NOT RUN",
}


def line(result: ScenarioResult, parts: Sequence[ScenarioResult] = ()) -> str:
    """One line about a scenario, with the counts of its parts."""
    text = f"{_WORDS[result.outcome]} {result.id} {result.seconds:.1f} s"
    if parts:
        counts = Counter(p.outcome for p in parts)
        text += ": " + ", ".join(f"{counts[o]} {o}" for o in Outcome if counts[o])
    elif result.outcome is not Outcome.PASSED and result.summary:
        text += f": {result.summary}"
    return text
