"""The benchmark on the testbed's command line."""

from __future__ import annotations

import sys
import time

import click
from rich.console import Console

from smbdirect_testbed.bench import report as bench_report
from smbdirect_testbed.bench import rows as bench_rows
from smbdirect_testbed.environment import housekeeping
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import ProvisionError, TestbedError
from smbdirect_testbed.lib.progress import Progress

_FILE_WIDTH = 200
"""Columns."""


@click.command()
@click.argument("rows", metavar="[ROW]...", nargs=-1, type=click.Choice(list(bench_rows.ROWS)))
@click.option("--times", default=5, show_default=True, help="How often to measure each thing.")
@click.option(
    "--carrier",
    "carriers",
    multiple=True,
    type=click.Choice(["vm", "uml"]),
    help="Only this one; may be repeated.",
)
def bench(rows: tuple[str, ...], times: int, carriers: tuple[str, ...]) -> None:
    """Measure how long things take, against their goals.

    All rows take about half an hour, on a computer that does nothing else meanwhile.
    """
    progress = Progress()
    housekeeping.remove_orphans(progress)
    settings = bench_rows.Settings(times, carriers or bench_rows.carriers_here(), progress)
    figures = []
    failed: dict[str, TestbedError] = {}
    for row, measure in bench_rows.chosen(rows).items():
        # What was measured before takes long to measure again.
        try:
            for figure in measure(settings):
                progress.say(f"{figure.what}: {figure.median:.2f} {figure.unit}")
                figures.append(figure)
        except TestbedError as e:
            progress.say(f"{row}: could not be measured: {e.message}")
            failed[row] = e
    # Into a file, the lines may be as long as they are.
    width = None if sys.stdout.isatty() else _FILE_WIDTH
    Console(highlight=False, width=width).print(bench_report.table(figures))
    directory = paths.results() / f"bench-{time.strftime('%Y%m%d-%H%M%S')}"
    click.echo(f"all figures: {bench_report.write(figures, directory)}")
    if file := bench_report.plot(figures, directory):
        click.echo(f"how set-up grows with hosts: {file}")
    if failed:
        error = next(iter(failed.values()))
        raise ProvisionError(
            f"not measured: {', '.join(failed)}: {error.message}",
            hint=error.hint,
            detail=error.detail,
        )
