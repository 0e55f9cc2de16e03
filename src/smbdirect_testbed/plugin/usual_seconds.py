"""How long scenarios took in earlier runs, by what executed them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from smbdirect_testbed.lib import paths
from smbdirect_testbed.results.results import Outcome, ScenarioResult


def usual_seconds(kind: str) -> dict[str, float]:
    """Seconds by a scenario's id, of the last run in which it passed.

    :param kind: what scenarios take alike in: a carrier's name
    """
    try:
        known = json.loads(_file(kind).read_text())
        return {str(id): float(seconds) for id, seconds in known.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def remember_seconds(kind: str, scenarios: Sequence[ScenarioResult]) -> None:
    """Keep how long scenarios took, for even shares and for deadlines."""
    took = {
        s.id: round(s.seconds, 1)
        for s in scenarios
        if not s.suite and s.outcome in (Outcome.PASSED, Outcome.KNOWNFAIL)
    }
    known = {**usual_seconds(kind), **took}
    file = _file(kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Other runs may end at the same moment; one of them has the last word.
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".", delete=False) as new:
        new.write(json.dumps(known, indent=1))
    Path(new.name).replace(file)


def _file(kind: str) -> Path:
    return paths.cache() / f"seconds-{kind}.json"
