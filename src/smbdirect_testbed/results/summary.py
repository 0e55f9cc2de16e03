"""The end of a run's output at a terminal: failures explained, a table, and the verdict."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TextIO

from rich import box
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from smbdirect_testbed.lib.printable import printable
from smbdirect_testbed.results.results import (
    Outcome,
    RunResults,
    ScenarioResult,
    Verdict,
    shortened,
)

_NARROWEST = 100
"""Columns of the table, also without a terminal or on a narrow one."""
_LONGEST_EXPLANATION = 3000
_MOST_EXPLANATIONS = 20


def print_summary(results: RunResults, *, keep: bool, file: TextIO | None = None) -> None:
    """Print the failures explained, a table of scenarios and the verdict."""
    console = Console(file=file, highlight=False, soft_wrap=True)
    console.width = max(console.width, _NARROWEST)
    failures = results.failures()
    for failure in failures[:_MOST_EXPLANATIONS]:
        console.print(f"\n[bold red]FAILED[/] [bold]{_safe(failure.id)}[/]")
        text = shortened(failure.trace or failure.message, _LONGEST_EXPLANATION)
        console.print(_safe(_indented(text)))
        if failure.directory:
            console.print(f"  see {results.directory / failure.directory}")
    if len(failures) > _MOST_EXPLANATIONS:
        console.print(f"\n... and {len(failures) - _MOST_EXPLANATIONS} more, see the report")
    console.print()
    if results.scenarios:
        console.print(_table(results))
    for note in results.notes:
        console.print(f"note: {_safe(note)}")
    colour = "green" if results.verdict is Verdict.PASSED else "red"
    name = results.facts.get("environment", "")
    shell = "smbdirect-testbed shell"
    if not keep:
        shell = f"smbdirect-testbed up {name}, then {shell}"
    console.print(
        f"[bold {colour}]{results.verdict}[/]: {_safe(results.reason)} "
        f"in {results.seconds:.0f} s; results: {results.directory}/report.html; "
        f"a shell in the same set-up: {shell}"
    )


def _table(results: RunResults) -> Table:
    shown = [o for o in Outcome if any(s.outcome is o for s in results.scenarios)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("scenarios", no_wrap=True)
    for heading in (*shown, "seconds"):
        table.add_column(str(heading), justify="right")
    rows: dict[str, list[ScenarioResult]] = {}
    for scenario in results.scenarios:
        rows.setdefault(scenario.file, []).append(scenario)
    for name, scenarios in rows.items():
        counts = Counter(s.outcome for s in scenarios)
        # The seconds of smbtorture's tests are part of the scenario that ran them.
        seconds = sum(s.seconds for s in scenarios if not s.suite)
        cells = [str(counts[o] or "") for o in shown]
        if counts[Outcome.FAILED]:
            cells[shown.index(Outcome.FAILED)] = f"[red]{counts[Outcome.FAILED]}[/]"
        table.add_row(_safe(Path(name).name), *cells, f"{seconds:.1f}")
    return table


def _safe(text: str) -> str:
    """Text that means nothing to rich, nor to a terminal."""
    return escape_markup(printable(text))


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
