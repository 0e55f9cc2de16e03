"""What people see of a measurement: a plot, made by matplotlib where that is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from smbdirect_testbed.echo.bench_report import size_name

_COLOURS = {"smbdirect": "tab:blue", "tcp": "tab:orange"}
_STYLES = ("-", "--", ":", "-.")
_METRICS: tuple[tuple[str, Callable[[dict[str, Any]], float | None], str], ...] = (
    ("median latency, µs", lambda r: r["latency_us"]["p50"], "log"),
    ("99th percentile of latency, µs", lambda r: r["latency_us"]["p99"], "log"),
    ("MiB/s", lambda r: r["mib_per_second"], "linear"),
    ("CPU seconds a GiB", lambda r: r["machine_cpu_seconds_per_gib"], "log"),
)


class PlotUnavailable(RuntimeError):
    """matplotlib is missing."""


def plot(document: dict[str, Any], path: Path) -> None:
    """Draw the results into a file; its ending says the format (.svg, .png, .pdf).

    :raises PlotUnavailable: matplotlib is missing
    :raises OSError: the file cannot be written
    :raises ValueError: no such format
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise PlotUnavailable(
            "a plot needs matplotlib: pip install 'smbdirect-testbed[plot]'"
        ) from e
    results = document["results"]
    operations = list(dict.fromkeys(r["operation"] for r in results))
    depths = sorted({r["depth"] for r in results})
    sizes = sorted({r["size"] for r in results})
    figure = Figure(figsize=(4 * len(_METRICS), 3 * len(operations)), layout="constrained")
    axes = figure.subplots(len(operations), len(_METRICS), squeeze=False)
    for row, operation in zip(axes, operations, strict=True):
        for axis, (metric, value, scale) in zip(row, _METRICS, strict=True):
            for transport, colour in _COLOURS.items():
                for index, depth in enumerate(depths):
                    points = [
                        (sizes.index(r["size"]), value(r))
                        for r in results
                        if (r["operation"], r["transport"], r["depth"])
                        == (operation, transport, depth)
                        and value(r)
                    ]
                    if points:
                        style = _STYLES[index % len(_STYLES)]
                        label = f"{transport}, depth {depth}"
                        axis.plot(
                            *zip(*sorted(points), strict=True),
                            style,
                            color=colour,
                            marker=".",
                            label=label,
                        )
            axis.set_yscale(scale)
            if scale == "linear":
                axis.set_ylim(bottom=0)
            axis.set_xticks(range(len(sizes)), [size_name(s) for s in sizes], fontsize="small")
            axis.grid(alpha=0.3)
            axis.set_title(f"{operation}: {metric}", fontsize="medium")
    legends = [a.get_legend_handles_labels() for a in axes.flat]
    handles = {label: h for hs, ls in legends for h, label in zip(hs, ls, strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    machine = document["machine"]
    figure.suptitle(f"kernel {machine['kernel']}, {machine['cpus']} CPUs, {document['started']}")
    figure.savefig(path)
