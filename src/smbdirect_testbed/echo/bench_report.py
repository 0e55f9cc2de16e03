"""What people read of a measurement: a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_COLUMNS = (
    ("operation", 10),
    ("size", 8),
    ("depth", 5),
    ("transport", 9),
    ("p50 us", 9),
    ("p99 us", 9),
    ("p99.9 us", 9),
    ("ops/s", 9),
    ("MiB/s", 8),
    ("CPU s/GiB", 9),
)


class NoResults(ValueError):
    """A file that has no results of a measurement."""


def load(path: Path) -> dict[str, Any]:
    """Results from a file.

    :raises OSError: it cannot be read
    :raises NoResults: it is something else
    """
    try:
        document = json.loads(path.read_text())
        if document["schema"] == 1 and document["results"]:
            return dict(document)
    except (ValueError, KeyError, TypeError):
        pass
    raise NoResults(f"{path} has no results of a measurement")


def table(document: dict[str, Any]) -> str:
    """The results as text; transports of one point are next to each other."""
    machine = document["machine"]
    rows: list[list[str]] = []
    last: tuple[str, str, str] | None = None
    for result in document["results"]:
        point = (result["operation"], size_name(result["size"]), str(result["depth"]))
        if last and last[0] != point[0]:
            rows.append([])
        cells = [*(point if point != last else ("", "", "")), result["transport"]]
        latency = result["latency_us"]
        cells += [f"{latency[p]:.0f}" for p in ("p50", "p99", "p99.9")]
        cells += [f"{result['operations_per_second']:.0f}", f"{result['mib_per_second']:.1f}"]
        cpu = result["machine_cpu_seconds_per_gib"]
        cells.append("" if cpu is None else f"{cpu:.2f}")
        rows.append(cells)
        last = point
    names = [name for name, _ in _COLUMNS]
    # A busy computer has figures that are wider than usual.
    widths = [
        max(width, *(len(row[n]) for row in rows if row)) for n, (_, width) in enumerate(_COLUMNS)
    ]
    return "\n".join(
        [
            f"kernel {machine['kernel']}, {machine['cpus']} CPUs, {document['seconds']:g} s each "
            f"in {document['rounds']} turns; CPU is that of the whole machine",
            *(
                "  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=False))
                for row in [names, *rows]
            ),
        ]
    )


def size_name(size: int) -> str:
    """Bytes, short: 64, 4 KiB, 1 MiB."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and not size % unit:
            return f"{size // unit} {name}"
    return str(size)
