"""The agent of a machine, while a context lasts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from smbdirect_testbed.machine.agent_client import AgentClient
from smbdirect_testbed.machine.agent_connection import AgentPipe
from smbdirect_testbed.machine.agent_program import offer_agent
from smbdirect_testbed.machine.machine import Machine


@contextmanager
def running_agent(machine: Machine) -> Iterator[AgentClient]:
    """The agent in a machine: the one that its carrier started with it, or else one by a command.

    The latter ends on exit; what it made stays in the machine unless it was told to unmake it.
    """
    if machine.agent:
        yield machine.agent
        return
    program = offer_agent(machine.shared.here, None)
    # Not in the shared directory, where the machine could make it a link.
    log = machine.console.with_name("agent.log")
    with log.open("ab") as errors:
        proc = subprocess.Popen(
            machine.argv(["python3", "-I", str(machine.shared.path_there(program))]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    machine.agent = AgentClient(machine, AgentPipe(proc), started=False)
    try:
        yield machine.agent
    finally:
        machine.agent.close()
        machine.agent = None
