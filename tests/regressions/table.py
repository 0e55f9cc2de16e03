"""``docs/regressions.md``: which bugs were put back, and what caught them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .attempt import Attempt, Verdict
from .bug import CATALOGUE, Bug, Which

DOCUMENT = Path(__file__).parents[2] / "docs" / "regressions.md"
RESULTS = CATALOGUE.with_name("results.json")
"""What became of each bug when it was tried last; the document is made from it."""
_LONGEST = 110
"""Characters of a message in the table."""

_HEAD = """\
# Bugs put back

A testbed that is green proves something only if it turns red when the driver is broken. Here the
driver's source gets one bug at a time, some that upstream had and some of our own invention; the
driver is built, and the scenarios that must catch the bug run, up to the first that fails. The same
scenarios pass with the source as it is.

```
python -m tests.regressions list                       # the bugs
python -m tests.regressions run                        # try all of them, and write this document
python -m tests.regressions run registration-kept      # only some: their rows are replaced
python -m tests.regressions run --environment uml-siw  # those of one environment
```

(`make test` makes the `.venv` whose `python` is meant.) Each bug is a file in
`tests/regressions/catalogue/`; what the keys mean is in `tests/regressions/bug.py`. To add one,
write such a file and run it.

"""


@dataclass(frozen=True)
class Row:
    """What is known of a bug that was tried."""

    verdict: Verdict
    seconds: float
    scenario: str
    says: str


def read_results() -> dict[str, Row]:
    """What became of the bugs when they were tried last, by name."""
    if not RESULTS.exists():
        return {}
    rows = json.loads(RESULTS.read_text())
    return {
        name: Row(Verdict(row["verdict"]), row["seconds"], row["scenario"], row["says"])
        for name, row in rows.items()
    }


def record(attempts: Sequence[Attempt], bugs: Sequence[Bug]) -> None:
    """Remember what became of bugs, and write the document.

    :param attempts: of some bugs; what is known of the others stays
    :param bugs: the whole catalogue
    """
    rows = read_results()
    for one in attempts:
        scenario = one.scenario.rpartition("::")[2]
        rows[one.bug.name] = Row(one.verdict, round(one.seconds, 1), scenario, one.says)
    known = {bug.name for bug in bugs}
    kept = {name: vars(row) for name, row in sorted(rows.items()) if name in known}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    DOCUMENT.write_text(document(bugs, read_results()))


def document(bugs: Sequence[Bug], rows: Mapping[str, Row]) -> str:
    """The text of ``docs/regressions.md``."""
    lines = [
        "| bug | kind | upstream | what happens | caught by | on | s | it says |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(bug, rows.get(bug.name)) for bug in bugs]
    return f"{_HEAD}{_summary(bugs, rows)}\n\n" + "\n".join(lines) + "\n"


def _summary(bugs: Sequence[Bug], rows: Mapping[str, Row]) -> str:
    def caught(which: Which, *, debug: bool) -> int:
        return sum(
            bug.which is which
            and bug.environment.endswith("-debug") is debug
            and bug.name in rows
            and rows[bug.name].verdict is Verdict.CAUGHT
            for bug in bugs
        )

    found = Counter(rows[bug.name].verdict for bug in bugs if bug.name in rows)
    default = caught(Which.DEFAULT, debug=False)
    checked = caught(Which.DEFAULT, debug=True)
    thorough = caught(Which.THOROUGH, debug=False) + caught(Which.THOROUGH, debug=True)
    return (
        f"Of {len(bugs)} bugs, the scenarios of an ordinary run catch **{default}**, those of an"
        f" ordinary run with a kernel that looks for mistakes **{checked}** more, thorough ones"
        f" **{thorough}** more; **{found[Verdict.MISSED]}** are missed, and"
        f" {len(bugs) - found[Verdict.CAUGHT] - found[Verdict.MISSED]} were not tried. `s` is from"
        " the command to the verdict, in seconds, with building the driver."
    )


def _line(bug: Bug, row: Row | None) -> str:
    tried = row and row.verdict is not Verdict.NOT_TRIED
    seconds = f"{row.seconds:.0f}" if row and tried else ""
    cells = (
        f"`{bug.name}`: {bug.what}",
        bug.kind.value,
        bug.upstream,
        bug.happens,
        _caught(bug, row),
        bug.environment,
        seconds,
        _short(row.says) if row else "",
    )
    return f"| {' | '.join(map(_escaped, cells))} |"


def _caught(bug: Bug, row: Row | None) -> str:
    if row is None or row.verdict is Verdict.NOT_TRIED:
        return "not tried"
    if row.verdict is Verdict.MISSED:
        return "**missed**"
    return f"`{row.scenario}`{' (thorough)' if bug.which is Which.THOROUGH else ''}"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
