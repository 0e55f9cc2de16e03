"""Looking for leaks: when, and what is asked of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest
from tests.helpers.fake_machine import FakeMachine

from smbdirect_testbed.evidence import kmemleak
from smbdirect_testbed.evidence.kmemleak import LeakDetector
from smbdirect_testbed.lib.process import CommandResult


class _Machine(FakeMachine):
    """Its clock goes on by two seconds with every look at it."""

    def __init__(self, directory: Path, *, has_it: bool) -> None:
        super().__init__(directory, PurePosixPath("/testbed"))
        self.uptime = 100.0
        self.scans: list[float] = []
        self._has_it = has_it

    def run(  # type: ignore[override]
        self, command: Sequence[str], *, check: bool = True, timeout: float = 60
    ) -> CommandResult:
        said = ""
        if command[0] == "cat":
            self.uptime += 2
            said = f"{self.uptime} 1.0\n"
        elif self._has_it:
            self.scans.append(self.uptime)
            said = "there\n" if "echo there" in command[2] else ""
        return CommandResult(tuple(command), 0, said, "")


@pytest.mark.parametrize("has_it", [True, False])
def test_whether_a_kernel_has_it(tmp_path: Path, *, has_it: bool) -> None:
    assert LeakDetector(_Machine(tmp_path, has_it=has_it)).is_there() is has_it


def test_young_allocations_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmemleak, "_INTERVAL", 0.001)
    machine = _Machine(tmp_path, has_it=True)
    begun = machine.uptime
    LeakDetector(machine).scan_all()
    (scanned,) = machine.scans
    assert scanned >= begun + 5.5
