"""The testbed's side of :mod:`smbdirect_testbed.agent`."""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smbdirect_testbed import process
from smbdirect_testbed.errors import ProvisionError
from smbdirect_testbed.machine import Machine

_PROGRAM = Path(__file__).with_name("agent.py")
_TIMEOUT = 90.0
"""Seconds for one answer: Python and pyroute2 take up to 10 s to start under TCG."""


class AgentClient:
    """Sends requests to the agent in a machine.

    The agent starts in the background: the first request waits until it is ready.
    """

    def __init__(self, machine: Machine, proc: subprocess.Popen[bytes]) -> None:
        self._machine = machine
        self._proc = proc
        self._ready = False

    def call(self, do: str, **arguments: Any) -> Any:
        """Have the agent do something and return its answer.

        :raises ProvisionError: the agent failed, with its reason
        :raises MachineDied: the machine stopped running
        """
        if not self._ready:
            self._answer("starting the agent")
            self._ready = True
        assert self._proc.stdin
        self._proc.stdin.write(json.dumps({"do": do, "with": arguments}).encode() + b"\n")
        self._proc.stdin.flush()
        return self._answer(do)

    def _answer(self, what: str) -> Any:
        assert self._proc.stdout
        readable, _, _ = select.select([self._proc.stdout], [], [], _TIMEOUT)
        line = self._proc.stdout.readline() if readable else b""
        if not line:
            self._machine.raise_if_dead()
            how = "ended" if readable else f"did not answer in {_TIMEOUT:g} s"
            raise ProvisionError(f"{what}: the agent in machine {self._machine.name} {how}")
        answer = json.loads(line)
        if "error" in answer:
            raise ProvisionError(f"machine {self._machine.name}: {answer['error']}")
        return answer["ok"]


@contextmanager
def running_agent(machine: Machine) -> Iterator[AgentClient]:
    """Start the agent in a machine without waiting for it; on exit, end it.

    What the agent made stays in the machine unless it was told to unmake it.
    """
    copy = machine.shared.here / _PROGRAM.name
    copy.write_bytes(_PROGRAM.read_bytes())
    log = machine.shared.here / "agent.log"
    with log.open("ab") as errors:
        proc = subprocess.Popen(
            machine.argv(["python3", str(machine.shared.path_there(copy))]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    try:
        yield AgentClient(machine, proc)
    finally:
        assert proc.stdin
        assert proc.stdout
        try:
            proc.stdin.close()
            proc.wait(timeout=5)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            process.kill_group(proc)
            proc.wait()
        proc.stdout.close()
