"""Put bugs back into the driver, and see whether the scenarios find them.

``python -m tests.regressions --help``; ``docs/regressions.md`` has what came of it.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from smbdirect_testbed.lib.errors import ExitStatus, TestbedError, UsageError
from smbdirect_testbed.lib.progress import Progress

from .attempt import Attempt, Verdict, attempt, innocent, write_source
from .bug import CATALOGUE, Bug, DoesNotFit, catalogue
from .table import DOCUMENT, record


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except TestbedError as e:
        click.echo(f"error: {e.message}", err=True)
        if e.hint:
            click.echo(f"hint: {e.hint}", err=True)
        sys.exit(e.exit_status)


def _chosen(
    names: Sequence[str], fits: Callable[[Bug], bool] = lambda _: True, directory: Path = CATALOGUE
) -> list[Bug]:
    bugs = {bug.name: bug for bug in catalogue(directory)}
    if unknown := sorted(set(names) - bugs.keys()):
        raise UsageError(
            f"there is no bug {unknown[0]}", hint="python -m tests.regressions list has them all"
        )
    return [bug for name, bug in bugs.items() if (not names or name in names) and fits(bug)]


@click.group(help=__doc__)
def main() -> None:
    """See the module."""


@main.command("list")
def list_bugs() -> None:
    """Say which bugs there are."""
    with _errors_in_one_line():
        for bug in catalogue():
            click.echo(f"{bug.name:32} {bug.kind.value:9} {bug.environment:14} {bug.what}")


@main.command()
@click.argument("names", nargs=-1)
@click.option("--environment", default="uml-rxe", show_default=True, help="Whose source it is.")
def check(names: tuple[str, ...], environment: str) -> None:
    """Say whether bugs (all, or the NAMES) fit the source, without building anything."""
    with _errors_in_one_line(), tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        write_source(environment, tree, Progress(quiet=True))
        before = {file: file.read_bytes() for file in tree.rglob("*.[ch]")}
        bad = 0
        for bug in _chosen(names):
            try:
                bug.put_back(tree)
            except DoesNotFit as e:
                bad += 1
                click.echo(f"error: {e.message}", err=True)
            for edit in bug.edits:
                if (file := tree / edit.file) in before:
                    file.write_bytes(before[file])
        sys.exit(ExitStatus.FAILED if bad else ExitStatus.PASSED)


@main.command()
@click.argument("names", nargs=-1)
@click.option("--environment", help="Only the bugs that this environment must catch.")
@click.option("--quick", is_flag=True, help="Only those that `make test` tries.")
@click.option("--no-control", is_flag=True, help="Do not first run the scenarios without any bug.")
@click.option("--no-document", is_flag=True, help=f"Leave docs/{DOCUMENT.name} as it is.")
@click.option(
    "--catalogue",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=CATALOGUE,
    help="A directory of other bugs.",
)
def run(
    names: tuple[str, ...],
    environment: str,
    quick: bool,
    no_control: bool,
    no_document: bool,
    directory: Path,
) -> None:
    """Put bugs back (all, or the NAMES), one at a time, and say what catches them.

    Exit status: 0 all were caught, 1 one was missed, 3 one could not be tried.
    """

    def fits(bug: Bug) -> bool:
        return (not environment or bug.environment == environment) and (bug.quick or not quick)

    progress = Progress(quiet=True)
    attempts = []
    with _errors_in_one_line():
        bugs = _chosen(names, fits, directory)
        if not bugs:
            raise UsageError("no bug fits what was asked for")
        by_environment = sorted(bugs, key=lambda bug: bug.environment)
        for where, group in itertools.groupby(by_environment, key=lambda bug: bug.environment):
            several = list(group)
            red = {} if no_control else _control(several, where, progress)
            for bug in several:
                attempts.append(_say(_attempt(bug, red, progress)))
                if not no_document and directory == CATALOGUE:
                    # Each at once: a run of all takes long, and may be interrupted.
                    record(attempts, list(catalogue()))
    caught = sum(one.verdict is Verdict.CAUGHT for one in attempts)
    click.echo(f"caught {caught} of {len(attempts)}")
    verdicts = {one.verdict for one in attempts}
    if Verdict.NOT_TRIED in verdicts:
        sys.exit(ExitStatus.NOT_PROVIDED)
    sys.exit(ExitStatus.FAILED if Verdict.MISSED in verdicts else ExitStatus.PASSED)


def _control(bugs: Sequence[Bug], environment: str, progress: Progress) -> dict[str, str]:
    """What is red without any bug."""
    done = innocent(bugs, environment, progress)
    if done.trouble:
        raise UsageError(f"{environment}, without any bug: {done.trouble}")
    click.echo(f"{environment}: without any bug, {len(done.red)} red in {done.seconds:.0f} s")
    for name, message in done.red.items():
        click.echo(f"  {name}: {message}")
    return done.red


def _attempt(bug: Bug, red: dict[str, str], progress: Progress) -> Attempt:
    try:
        return attempt(bug, red, progress)
    except DoesNotFit as e:
        return Attempt(bug, Verdict.NOT_TRIED, says=e.message)


def _say(one: Attempt) -> Attempt:
    by = f" by {one.scenario}" if one.scenario else ""
    click.echo(
        f"{one.verdict.value:9} {one.bug.name} in {one.seconds:.0f} s{by}"
        + (f"\n          {one.says}" if one.says else "")
    )
    return one


if __name__ == "__main__":
    main()
