"""The commands for environments that are up."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import click

from smbdirect_testbed.environment.instance import Instance, find_instance, instances
from smbdirect_testbed.lib.errors import UsageError
from smbdirect_testbed.lib.printable import printable
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.machine.host import Host
from smbdirect_testbed.run.killed import publish_killed_runs

_instance_option = click.option(
    "--instance", metavar="NAME", help="The one that is meant, if several are up; see status."
)
_STATUS_OF_SIGNALS = 128
_PASS_ON = 'exec 3>&2 2>/dev/null; (exec "$@" 2>&3 3>&-); exit $?'
"""ssh has no status for a command that was ended by a signal; a shell has 128 and the signal's
number. The shell's own words about the signal do not belong to the command's standard error."""


@click.command()
@click.argument("host", required=False)
@_instance_option
def shell(host: str | None, instance: str | None) -> int:
    """Open a shell on HOST of the environment that is up; without HOST, on the client."""
    found = _host(find_instance(instance), host or "client")
    return _called(found.argv(["bash", "-l"], tty=True))


@click.command(
    name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@_instance_option
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(host: str, command: tuple[str, ...], instance: str | None) -> int:
    """Run CMD on HOST of the environment that is up: exec HOST -- CMD...

    Standard input, output, error and the exit status are the command's. If a signal ended the
    command, the status is 128 and the number of the signal.
    """
    if command[0] == "--":
        command = command[1:]
    if not command:
        raise UsageError("there is no command to run", hint="exec HOST -- CMD...")
    found = _host(find_instance(instance), host)
    return _called(found.argv(["sh", "-c", _PASS_ON, "sh", *command]))


@click.command()
def status() -> None:
    """Show the environments that are up, and their hosts."""
    publish_killed_runs(Progress())
    found = instances()
    if not found:
        click.echo("nothing is up")
    for instance in found:
        what = "up" if instance.kept else "running" if instance.in_use() else "orphan"
        hosts = instance.hosts() if instance.environment else {}
        click.echo(
            f"{instance.name}: {what}, environment {instance.environment or '?'}, "
            f"{instance.age / 60:.0f} min, hosts {', '.join(hosts) or 'none yet'}"
        )
        for machine in {id(h.machine): h.machine for h in hosts.values()}.values():
            if reason := machine.death():
                click.echo(f"  machine {machine.name} is dead: {printable(reason)}")


@click.command()
@click.argument("name", metavar="", required=False)
@_instance_option
def down(name: str | None, instance: str | None) -> None:
    """End the environment that is up."""
    if name:
        if instance:
            raise UsageError(f"unexpected argument {name}", hint="--instance names the instance")
        click.echo(f"note: say it as for exec and shell: down --instance {name}", err=True)
    found = find_instance(name or instance)
    if found.in_use():
        raise UsageError(f"{found.name} belongs to a running run", hint="end that run first")
    found.remove()
    click.echo(f"{found.name} is down")


def _called(argv: Sequence[str]) -> int:
    """Run a command with this process's input and output; return the status a shell would."""
    status = subprocess.call(argv)
    return _STATUS_OF_SIGNALS - status if status < 0 else status


def _host(instance: Instance, name: str) -> Host:
    hosts = instance.hosts()
    if name not in hosts:
        raise UsageError(f"there is no host {name}", hint=f"hosts are: {', '.join(hosts)}")
    return hosts[name]
