"""What people read of a benchmark: a table, a file, a plot."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from smbdirect_testbed.bench.measure import Figure
from smbdirect_testbed.lib.errors import UsageError


def table(figures: Sequence[Figure]) -> Table:
    """Medians, spread and goals."""
    shown = Table(box=None)
    for column in ("what", "median", "spread", "goal", "", "n"):
        right = column in ("median", "spread", "goal", "n")
        shown.add_column(column, justify="right" if right else "left", no_wrap=True)
    shown.add_column("", overflow="fold")
    for figure in figures:
        shown.add_row(
            figure.what,
            _number(figure.median, figure.unit),
            f"{_bare(min(figure.values))}-{_bare(max(figure.values))}" if figure.values else "",
            _number(figure.goal, figure.unit),
            {True: "met", False: "not met", None: ""}[figure.good],
            str(len(figure.values)),
            figure.note,
        )
    return shown


def write(figures: Sequence[Figure], directory: Path) -> Path:
    """Write all figures to ``bench.json`` in a directory; return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    document = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "figures": [{**asdict(f), "median": f.median, "good": f.good} for f in figures],
    }
    file = directory / "bench.json"
    file.write_text(json.dumps(document, indent=1) + "\n")
    return file


def plot(figures: Sequence[Figure], directory: Path) -> Path | None:
    """Draw how set-up time grows with the number of hosts; return the file, if there is anything.

    :raises UsageError: matplotlib is not installed
    """
    drawn = [figure for figure in figures if figure.points]
    if not drawn:
        return None
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError as e:
        raise UsageError(
            "a plot needs matplotlib", hint="install it: .venv/bin/pip install -e '.[plot]'"
        ) from e
    canvas = Canvas(figsize=(6, 4), layout="constrained")
    axes = canvas.subplots()
    for figure in drawn:
        numbers, seconds = zip(*figure.points, strict=True)
        axes.plot(numbers, seconds, marker="o", label=figure.row)
    axes.set_xlabel("hosts in one machine")
    axes.set_ylabel("seconds to make them, with their links")
    axes.set_ylim(bottom=0)
    axes.legend()
    file = directory / "hosts.svg"
    canvas.savefig(file)
    return file


def _number(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_bare(value)} {unit}"


def _bare(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
