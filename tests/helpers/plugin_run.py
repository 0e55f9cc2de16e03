"""Runs of the pytest plugin in a fake environment."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from tests.helpers.fake_machine import FakeMachine

from smbdirect_testbed.config.spec import (
    CarrierKind,
    EnvironmentSpec,
    HostSpec,
    RdmaType,
    Role,
    ServerKind,
    ServerSpec,
)
from smbdirect_testbed.lib.errors import ExitStatus, ProvisionError, TestbedError, UsageError
from smbdirect_testbed.lib.process import CommandResult
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.machine.kernel_log import KernelLog
from smbdirect_testbed.plugin import RunPlugin
from smbdirect_testbed.smb.server import TESTER
from smbdirect_testbed.smb.transports import SambaTransports

WARNING = """\
------------[ cut here ]------------
WARNING: CPU: 1 PID: 211 at fs/smb/smbdirect/connection.c:77 smbdirect_connection_wait+0x1/0x2
Modules linked in: smbdirect(OE)
Call Trace:
 <TASK>
 smbdirect_connection_wait+0x1/0x2 [smbdirect]
 </TASK>
---[ end trace 0000000000000000 ]---
"""
PANIC = """\
BUG: unable to handle page fault for address: ffffc900000000ff
Call Trace:
 <TASK>
 smbdirect_socket_release+0x12/0x80 [smbdirect_socket]
 </TASK>
Kernel panic - not syncing: Fatal exception
"""


class ScenarioMachine(FakeMachine):
    """A console file, and commands that scenarios give meaning to.

    It panics just after ``last_mark`` was written into its kernel log.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        super().__init__(directory, PurePosixPath("/testbed"))
        self.console.touch()
        self.last_mark: str | None = None

    def says(self, text: str) -> None:
        with self.console.open("a") as file:
            file.write(text)

    def panics(self) -> None:
        self.says(PANIC)
        self.died = "Kernel panic - not syncing: Fatal exception"
        self.raise_if_dead()

    def does(self, command: Sequence[str], input: str | bytes | None) -> None:
        if "/dev/kmsg" in command:
            assert isinstance(input, bytes)
            self.says(input.decode())
            if self.last_mark and self.last_mark in input.decode():
                self.says(PANIC)
                self.died = "Kernel panic - not syncing: Fatal exception"


def _census(environment: Any) -> dict[str, int]:
    """What there is; some of it goes by itself, after so many looks."""
    for what, looks in list(environment.gone_later.items()):
        environment.gone_later[what] = looks - 1
        if looks == 0:
            del environment.census[what]
    return dict(environment.census)


def _check(environment: Any) -> None:
    environment.machine.raise_if_dead()
    if not environment.driver_is_loaded:
        raise ProvisionError("module smbdirect is not loaded")


class Run:
    """One run of scenarios written by a test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.scenarios = directory / "scenarios"
        self.scenarios.mkdir()
        self.results = directory / "results" / "20261122-081530-fake-0000"
        self.machine: ScenarioMachine | None = None
        self.provide: Callable[[], Any] = self.provided
        self.raises: tuple[type[TestbedError], ...] = (UsageError,)
        self.torn_down = False
        self.smbd = False
        self.servers: tuple[ServerSpec, ...] = ()
        """What the environment's spec says of servers."""
        self.waited_for_servers = 0
        self.no_servers: ProvisionError | None = None
        self.rdma: RdmaType | None = RdmaType.RXE
        self.answer: Callable[[list[str]], tuple[int, str]] = lambda command: (0, "")
        """The status and output of a command that the client runs."""
        self.commands: list[list[str]] = []
        self.waited_until_idle = 0
        self.times_provided = 0
        self.options: dict[str, Any] = {}
        """More arguments for the plugin."""

    def client_runs(self, command: list[str], **_: Any) -> CommandResult:
        self.commands.append(command)
        assert self.machine
        (self.machine.shared.here / "smbd" / "log.client").open("a").write(f"{command[-1]}\n")
        status, output = self.answer(command)
        return CommandResult(tuple(command), status, output, "said on stderr")

    def wait_until_idle(self) -> None:
        self.waited_until_idle += 1

    def wait_for_servers(self) -> None:
        self.waited_for_servers += 1
        if self.no_servers:
            raise self.no_servers

    def start_over(self) -> None:
        """Forget the results of the run before."""
        shutil.rmtree(self.results)

    def write(self, text: str, name: str = "test_it.py") -> None:
        (self.scenarios / name).write_text(textwrap.dedent(text))

    @contextmanager
    def provided(self) -> Iterator[Any]:
        self.machine = machine = ScenarioMachine(self.directory / f"instance{self.times_provided}")
        self.times_provided += 1
        spec = EnvironmentSpec(
            name="fake",
            description="none",
            carrier=CarrierKind.VM,
            image="none",
            hosts=(HostSpec(name="client", role=Role.CLIENT),),
            links=(),
            servers=self.servers,
        )
        logs = machine.shared.here / "smbd"
        logs.mkdir()
        smbd = SimpleNamespace(
            kind=ServerKind.SMBD,
            logs=logs,
            unc=lambda client: "//10.7.0.1/share",
            account=TESTER,
            samba=SambaTransports(PurePosixPath("/testbed/driver/smbdirect-run")),
            host=None,
            wait_until_idle=self.wait_until_idle,
        )
        end = SimpleNamespace(rdma=self.rdma)
        client = SimpleNamespace(run=self.client_runs, end_towards=lambda peer: end)
        try:
            environment = SimpleNamespace(
                census=Counter(),
                gone_later={},
                servers_start=lambda: False,
                drivers={"machine": SimpleNamespace(names=[])},
                driver_is_loaded=True,
                spec=spec,
                machine=machine,
                hosts={},
                server=lambda kind: smbd if self.smbd and kind is ServerKind.SMBD else None,
                servers=lambda: [smbd] if self.smbd else [],
                wait_for_servers=self.wait_for_servers,
                host=lambda role: client,
                machines={"machine": machine},
                kernel_logs={"machine": KernelLog(machine)},
                death=machine.death,
                driver=SimpleNamespace(built=SimpleNamespace(files_with_lines={})),
                facts=lambda: {"environment": "fake", "samba": "4.24"},
            )
            agent = SimpleNamespace(take_census=lambda *_: _census(environment))
            machine.required_agent = lambda: agent  # type: ignore[method-assign,assignment,return-value]
            environment.condemn = machine.condemn
            environment.check = lambda: _check(environment)
            yield environment
        finally:
            self.torn_down = True

    def main(self, *paths: str, expression: str | None = None) -> ExitStatus:
        sys.modules.pop("test_it", None)  # of another test of this process
        self.plugin = RunPlugin(
            lambda: self.provide(),
            self.results,
            Progress(),
            environment="fake",
            **self.options,
            raises=self.raises,
        )
        return self.plugin.main(paths or [str(self.scenarios)], expression)

    def json(self) -> dict[str, Any]:
        found = json.loads((self.results / "run.json").read_text())
        assert isinstance(found, dict)
        return found

    def scenario(self, name: str) -> dict[str, Any]:
        """The only scenario in run.json whose id ends with this."""
        (found,) = [s for s in self.json()["scenarios"] if s["id"].endswith(name)]
        assert isinstance(found, dict)
        return found

    def junit(self) -> dict[str, ET.Element]:
        root = ET.parse(self.results / "junit.xml").getroot()
        return {e.attrib["name"]: e for e in root.iter("testcase")}

    def complete(self) -> bool:
        latest = self.results.parent / "latest"
        names = ("run.json", "junit.xml", "report.html")
        return latest.resolve() == self.results and all((latest / n).exists() for n in names)
