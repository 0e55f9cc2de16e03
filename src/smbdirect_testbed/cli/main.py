"""The command line."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from smbdirect_testbed.cli.guard import guarded
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import ExitStatus, TestbedError, UsageError
from smbdirect_testbed.lib.progress import Progress

# Everything else is imported by the command that needs it: importing all of it would take most of
# the time from typing to the first scenario.
if TYPE_CHECKING:
    from smbdirect_testbed.config.spec import EnvironmentSpec

_ELSEWHERE = {
    "bench": ("smbdirect_testbed.bench.cli", "bench"),
    "down": ("smbdirect_testbed.cli.instances", "down"),
    "echo": ("smbdirect_testbed.echo.cli", "echo"),
    "exec": ("smbdirect_testbed.cli.instances", "exec_"),
    "shell": ("smbdirect_testbed.cli.instances", "shell"),
    "status": ("smbdirect_testbed.cli.instances", "status"),
}
"""Commands in other modules: name of the command, module, name in the module."""


class _Commands(click.Group):
    """The commands. A command of another module is imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ELSEWHERE:
            module, name = _ELSEWHERE[cmd_name]
            found: click.Command = getattr(importlib.import_module(module), name)
            return found
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> object:
        with _traced(ctx):
            return super().invoke(ctx)


@contextmanager
def _traced(ctx: click.Context) -> Iterator[None]:
    """Show the traceback of an expected failure if the user asked for it with ``--debug``."""
    try:
        yield
    except TestbedError:
        if ctx.find_root().params["debug"]:
            traceback.print_exc()
        raise


def _show_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from smbdirect_testbed.lib.version import own_version

        click.echo(f"smbdirect-testbed, version {own_version()}")
        ctx.exit()


_cold_option = click.option(
    "--cold", is_flag=True, help="Boot the machine, and do not clone it from a template."
)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.option("--debug", is_flag=True, help="Show a traceback when something goes wrong.")
def cli(debug: bool) -> None:
    """Does SMB-Direct still work? Test it on Linux, without RDMA hardware.

    A run provides an environment (a virtual machine with hosts, soft-RDMA links, the kernel
    driver built from source, SMB servers), runs the scenarios in it, and says what passed.

    \b
    smbdirect-testbed run              everything, in rxe or uml-rxe
    smbdirect-testbed run rxe -k nbt   the scenarios that match an expression
    smbdirect-testbed up rxe           the environment alone, to work in
    smbdirect-testbed shell client     a shell on its host client
    smbdirect-testbed down             and away with it
    """


_expression_option = click.option(
    "-k", "expression", metavar="EXPR", help="Run scenarios matching a pytest expression."
)
_driver_option = click.option(
    "--driver",
    metavar="DIR",
    type=click.Path(path_type=Path),
    callback=lambda context, option, path: path and paths.absolute(path),
    help="Build the driver from this kernel tree (or a part of one with fs/smb), and User Mode "
    "Linux, too, from a full tree.",
)


@cli.command()
@click.argument("what", metavar="[ENV] [PATH]...", nargs=-1)
@_expression_option
@click.option("--keep", is_flag=True, help="Leave the environment up for shell and exec.")
@_driver_option
@_cold_option
@click.option("--thorough", is_flag=True, help="Also run the scenarios marked as thorough.")
@click.option(
    "--jobs",
    type=click.IntRange(0, 64),
    default=0,
    help="Share the scenarios among so many environments at once; 0: as many as are useful.",
)
@click.option("-x", "--exitfirst", "first", is_flag=True, help="End at the first failure.")
@click.option(
    "--maxfail", type=click.IntRange(0), default=0, help="End after so many failures; 0: never."
)
@click.option(
    "--run-all", is_flag=True, help="Also run scenarios that stand on something that is red."
)
@click.option(
    "--then-prepare",
    is_flag=True,
    help="After the verdict, build what later runs without ENV are quicker in.",
)
def run(
    what: tuple[str, ...],
    expression: str | None,
    keep: bool,
    driver: Path | None,
    cold: bool,
    thorough: bool,
    jobs: int,
    first: bool,
    maxfail: int,
    run_all: bool,
    then_prepare: bool,
) -> int:
    """Provide an environment and run scenarios in it.

    ENV is a name from `list`, or a path ending in .toml; if left out, uml-rxe where User Mode
    Linux has been built, else rxe. PATHs are files or directories of scenarios (with ::test, if
    one is meant). Without PATHs and -k: all scenarios that are not marked as thorough.

    Exit status: 0 all passed, 1 a scenario failed, 2 bad usage or a bad file, 3 the environment
    could not be provided.
    """
    from smbdirect_testbed.run.runner import (
        prepare_quickest,
        run_scenarios,
        run_where_machines_start,
    )

    progress = Progress.of_this_process()
    name, scenarios = _environment_and_scenarios(what, driver, progress)
    spec = _spec(name, driver, cold=cold)
    _remove_orphans(progress)
    if keep and jobs > 1:
        raise UsageError("--keep keeps one environment", hint="leave out --jobs")
    status = run_where_machines_start(
        lambda spec, attempt: run_scenarios(
            spec,
            scenarios,
            expression,
            progress,
            keep=keep,
            thorough=thorough,
            jobs=jobs,
            run_all=run_all,
            maxfail=1 if first else maxfail,
            attempt=attempt,
        ),
        spec,
        progress,
        named=name in what,
    )
    if then_prepare and name not in what and status in (ExitStatus.PASSED, ExitStatus.FAILED):
        prepare_quickest(progress, passed=status == ExitStatus.PASSED)
    return status


@cli.command()
@click.argument("what", metavar="[ENV] [PATH]...", nargs=-1)
@_expression_option
@_driver_option
@_cold_option
def watch(what: tuple[str, ...], expression: str | None, driver: Path | None, cold: bool) -> int:
    """Do what `run` does now and at every save, until Ctrl-C.

    What is watched: the driver's part of the tree given with --driver, and the rest of it if the
    machine's kernel is built from it; the testbed's own driver; the scenarios.
    """
    from smbdirect_testbed.config.envfile import load_environment
    from smbdirect_testbed.run.on_save import in_child, saves
    from smbdirect_testbed.run.runner import run_scenarios, run_where_machines_start, watched_places

    context = click.get_current_context()
    name, scenarios = _environment_and_scenarios(what, driver, Progress())
    places = [Path(s.partition("::")[0]) for s in scenarios] or [paths.scenarios()]
    places.append(paths.driver())
    if driver:
        places += watched_places(load_environment(name), driver)
    # For all children, which would each do it again.
    importlib.import_module("smbdirect_testbed.plugin")

    def once() -> int:
        progress = Progress()
        with _traced(context):
            spec = _spec(name, driver, cold=cold)
            _remove_orphans(progress)
            return run_where_machines_start(
                lambda spec, attempt: run_scenarios(
                    spec, scenarios, expression, progress, keep=False, attempt=attempt
                ),
                spec,
                progress,
                named=name in what,
            )

    for saved in saves(places):
        for file in saved:
            click.echo(f"saved: {file}", err=True)
        if in_child(lambda: guarded(once)) == ExitStatus.INTERRUPTED:
            return ExitStatus.INTERRUPTED
        click.echo("waiting for a save; Ctrl-C ends", err=True)
    return ExitStatus.PASSED


@cli.command()
@click.argument("env")
@_driver_option
@_cold_option
def up(env: str, driver: Path | None, cold: bool) -> None:
    """Provide the environment ENV and leave it up."""
    from smbdirect_testbed.run.runner import bring_up

    progress = Progress()
    spec = _spec(env, driver, cold=cold)
    _remove_orphans(progress)
    hosts = bring_up(spec, progress)
    progress.say(f"{spec.name} is up: smbdirect-testbed shell {'|'.join(hosts)}")
    progress.say("end it with: smbdirect-testbed down")


@cli.command()
@click.argument("env", required=False)
@_driver_option
def prepare(env: str | None, driver: Path | None) -> None:
    """Build what ENV needs (image, kernel, driver), so that a run does not have to.

    If ENV is left out: what runs are quickest in on this computer.
    """
    from smbdirect_testbed.environment.blueprint import resolve
    from smbdirect_testbed.environment.provide import provide_parts
    from smbdirect_testbed.run.runner import quickest_environment

    progress = Progress()
    spec = _spec(env or quickest_environment(), driver, cold=False)
    _remove_orphans(progress)
    provide_parts(resolve(spec), progress)
    progress.say(f"{spec.name} is prepared")


@cli.command(name="list")
def list_() -> None:
    """List the environments, with what each is for."""
    from smbdirect_testbed.config.envfile import list_environments, load_environment
    from smbdirect_testbed.environment.blueprint import resolve

    for name in list_environments():
        try:
            about = resolve(load_environment(name)).spec.description
        except TestbedError as e:
            about = f"(broken: {e.message})"
        click.echo(f"{name:20} {about}")


@cli.command()
def doctor() -> int:
    """Check this computer: what is missing, and the fix."""
    from rich.console import Console
    from rich.table import Table

    from smbdirect_testbed.cli.doctor import Status, diagnose

    table = Table(box=None)
    table.add_column("")
    table.add_column("check")
    table.add_column("found", overflow="fold")
    checks = diagnose()
    for check in checks:
        table.add_row(check.status.value, check.name, check.detail)
        if check.fix and check.status is not Status.OK:
            table.add_row("", "", f"fix: {check.fix}")
    Console(highlight=False).print(table)
    failed = [c.name for c in checks if c.status is Status.FAIL]
    click.echo(f"cannot run: {', '.join(failed)}" if failed else "ready to run")
    return ExitStatus.NOT_PROVIDED if failed else ExitStatus.PASSED


@cli.command()
@click.option("--cache", is_flag=True, help="Also remove the images, build roots and drivers.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean(cache: bool, yes: bool) -> None:
    """Remove what interrupted runs left behind, and with --cache all that can be made again."""
    from smbdirect_testbed.environment import housekeeping
    from smbdirect_testbed.run.killed import publish_killed_runs

    publish_killed_runs(Progress())
    waste = housekeeping.find_waste(cache=cache)
    if not waste:
        click.echo("nothing to remove")
        return
    for item in waste:
        click.echo(f"{item.size / 2**20:8.0f} MiB  {item.what}  {item.path}")
    total = sum(item.size for item in waste) / 2**20
    if not yes:
        click.confirm(f"remove these ({total:.0f} MiB)?", abort=True)
    for item in waste:
        item.remove()
    click.echo(f"freed {total:.0f} MiB")


def _spec(name: str, driver: Path | None, *, cold: bool) -> EnvironmentSpec:
    from smbdirect_testbed.config.envfile import load_environment
    from smbdirect_testbed.run.runner import with_driver, with_start

    return with_driver(with_start(load_environment(name), cold=cold), driver)


def _remove_orphans(progress: Progress) -> None:
    from smbdirect_testbed.environment import housekeeping
    from smbdirect_testbed.run.killed import publish_killed_runs

    housekeeping.remove_orphans(progress)
    publish_killed_runs(progress)


def _environment_and_scenarios(
    what: tuple[str, ...], driver: Path | None, progress: Progress
) -> tuple[str, list[str]]:
    from smbdirect_testbed.run.runner import default_environment, quickest_environment

    if what and not _is_path(what[0]):
        return what[0], list(what[1:])
    name, quickest = default_environment(driver), quickest_environment()
    if name != quickest:
        progress.say(
            f"in {name}, where the first verdict comes soonest; runs take a third of the time in"
            f" {quickest}, once that has been built: smbdirect-testbed prepare"
        )
    return name, list(what)


def _is_path(word: str) -> bool:
    return not word.endswith(".toml") and (
        "::" in word or word.endswith(".py") or "/" in word or Path(word).is_dir()
    )


def _terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM and SIGHUP end a run as Ctrl-C does: everything is undone."""
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line and exit with its status; see :class:`ExitStatus`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    status = guarded(lambda: cli(standalone_mode=False))
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing was provided by a command that did not import this.
    if (environment := sys.modules.get("smbdirect_testbed.environment.provide")) and (
        environment.anything_kept()
    ):
        os._exit(status)
    sys.exit(status)
