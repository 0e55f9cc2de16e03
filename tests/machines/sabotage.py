"""Break one thing of an environment on purpose, then run scenarios in it.

Usage: sabotage.py WHAT EXPRESSION ENVIRONMENT; the exit status is that of the run. An empty WHAT
breaks nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from smbdirect_testbed.config.envfile import load_environment
from smbdirect_testbed.config.spec import Role, ServerKind
from smbdirect_testbed.environment.environment import Environment
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.lib.wait import wait_until
from smbdirect_testbed.machine.machine import Machine
from smbdirect_testbed.run.runner import run_scenarios


def _kill_smbd(environment: Environment) -> None:
    environment.wait_for_servers()
    environment.machine.run(["pkill", "-KILL", "-x", "smbd"])


def unload_socket_module(environment: Environment) -> None:
    """The server is gone too then: it holds sockets of the module."""
    _kill_smbd(environment)
    environment.machine.run(["rmmod", "smbdirect_socket"])


def stop_smbd(environment: Environment) -> None:
    """Nothing listens any more."""
    _kill_smbd(environment)


def tcp_on_5445(environment: Environment) -> None:
    """Both ends believe they use SMB-Direct and use TCP: the silent fall-back."""
    server = environment.host_of(ServerKind.SMBD)
    assert server
    environment.wait_for_servers()
    pid = environment.machine.run(["pgrep", "-o", "-x", "smbd"]).stdout.strip()
    command = environment.machine.run(["cat", f"/proc/{pid}/cmdline"]).stdout.split("\0")[:-1]
    _kill_smbd(environment)
    launcher = environment.driver.launcher
    stand_in = '#!/bin/sh\n[ "$1" = -- ] && shift\nexec "$@"\n'
    environment.machine.run(["sh", "-c", 'cat >"$0"', str(launcher)], input=stand_in)
    # smbd ends when its standard input is a pipe that closes.
    script = 'setsid --fork "$@" </dev/null >/dev/null 2>&1'
    server.run(["sh", "-c", script, "sh", *command])
    wait_until(
        lambda: ":5445 " in server.run(["ss", "-Hltn"]).stdout or None, "TCP on 5445", timeout=30
    )


def panic(environment: Environment) -> None:
    """The kernel panics under the first scenario."""
    _panic_soon(environment.machine)


def panic_of_client(environment: Environment) -> None:
    """The same, on the machine that the client has for itself."""
    _panic_soon(environment.host(Role.CLIENT).machine)


def _panic_soon(machine: Machine) -> None:
    machine.run(["sh", "-c", "(sleep 3; echo c >/proc/sysrq-trigger) </dev/null >/dev/null 2>&1 &"])


def stop_netem(environment: Environment) -> None:
    """Links neither delay nor lose anything, whatever their environment says."""
    for host in environment.hosts.values():
        for end in host.ends:
            host.run(["tc", "qdisc", "del", "dev", end.device, "root"], check=False)


SABOTAGE: dict[str, Callable[[Environment], None]] = {
    f.__name__: f
    for f in (
        unload_socket_module,
        stop_smbd,
        tcp_on_5445,
        panic,
        panic_of_client,
        stop_netem,
    )
}


_ONCE = (panic, panic_of_client)
"""What ends a machine: the next one lives."""


class Saboteur:
    """Breaks an environment once it is there, before the first scenario."""

    def __init__(self, act: Callable[[Environment], None]) -> None:
        self._act = act
        self._done = False

    @pytest.fixture(scope="session", autouse=True)
    def sabotage(self, environment: Environment) -> None:
        if not (self._done and self._act in _ONCE):
            self._done = True
            self._act(environment)


if __name__ == "__main__":
    what, expression, name = sys.argv[1:]
    sys.exit(
        run_scenarios(
            load_environment(name),
            [],
            expression,
            Progress(),
            keep=False,
            plugins=[Saboteur(SABOTAGE[what])] if what else [],
        )
    )
