"""What can be done with an environment that is up, on the testbed's command line."""

from __future__ import annotations

import subprocess

import click

from smbdirect_testbed.environment.instance import Instance, find_instance, instances
from smbdirect_testbed.lib.errors import UsageError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.machine.host import Host
from smbdirect_testbed.run.killed import publish_killed_runs

_instance_option = click.option(
    "--instance", metavar="NAME", help="Which one, when more than one is up (see status)."
)


@click.command()
@click.argument("host", required=False)
@_instance_option
def shell(host: str | None, instance: str | None) -> int:
    """A shell on HOST of the environment that is up; on the client if left out."""
    found = _host(find_instance(instance), host or "client")
    return subprocess.call(found.argv(["bash", "-l"], tty=True))


@click.command(
    name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@_instance_option
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(host: str, command: tuple[str, ...], instance: str | None) -> int:
    """Run CMD on HOST of the environment that is up: exec HOST -- CMD...

    Standard input, output, error and the exit status are the command's.
    """
    if command[0] == "--":
        command = command[1:]
    if not command:
        raise UsageError("there is no command to run", hint="exec HOST -- CMD...")
    return subprocess.call(_host(find_instance(instance), host).argv(command))


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
                click.echo(f"  machine {machine.name} is dead: {reason}")


@click.command()
@click.argument("instance", required=False)
def down(instance: str | None) -> None:
    """End the environment that is up (INSTANCE, when there are more)."""
    found = find_instance(instance)
    if found.in_use():
        raise UsageError(f"{found.name} belongs to a run that goes on", hint="end that run first")
    found.remove()
    click.echo(f"{found.name} is down")


def _host(instance: Instance, name: str) -> Host:
    hosts = instance.hosts()
    if name not in hosts:
        raise UsageError(f"there is no host {name}", hint=f"hosts are: {', '.join(hosts)}")
    return hosts[name]
