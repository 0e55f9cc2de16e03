"""The suite on the testbed's command line."""

from __future__ import annotations

from pathlib import Path

import click

from smbdirect_testbed.echo.main import main
from smbdirect_testbed.echo.pack import pack as pack_into
from smbdirect_testbed.lib.errors import UsageError

_PASSED_ON = {"ignore_unknown_options": True, "help_option_names": []}


@click.group()
def echo() -> None:
    """Test and measure SMB-Direct between two machines of yours, without SMB.

    The machines need the kernel module and Python; `pack` makes one file to copy there.

    \b
    smbdirect-testbed echo serve              on one
    smbdirect-testbed echo run ADDRESS        on the other: checks, a verdict
    smbdirect-testbed echo bench ADDRESS      SMB-Direct and TCP side by side
    """


def _add(name: str, about: str) -> None:
    # The options are those of the packed file, and described in one place: argparse's.
    @echo.command(name=name, help=about, short_help=about, context_settings=_PASSED_ON)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def passed_on(arguments: tuple[str, ...]) -> int:
        return main([name, *arguments])


_add("serve", "Serve until Ctrl-C.")
_add("run", "Run the checks against a server.")
_add("bench", "Measure against a server.")
_add("report", "Show what bench measured; draw a plot of it.")


@echo.command()
@click.argument("file", type=click.Path(path_type=Path))
def pack(file: Path) -> None:
    """Pack all of this into one FILE, which runs with Python's standard library alone."""
    try:
        pack_into(file)
    except OSError as e:
        raise UsageError(f"cannot write {file}: {e.strerror}") from e
    click.echo(f"{file}: copy it to both machines; python3 {file.name} --help")
