"""Dividing a kernel log by markers, and whose a report is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest
from tests.helpers.fake_machine import FakeMachine

from smbdirect_testbed.kernel.splats import SplatKind, find_splats
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.machine.kernel_log import BEGINNING, KernelLog, Mark


class _FakeMachine(FakeMachine):
    """Its kernel log is the console file itself."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, PurePosixPath("/testbed"), "console.log")
        self.console.write_bytes(b"[    0.000000] Linux\r\n")
        self.deaf = False

    def say(self, text: str) -> None:
        with self.console.open("ab") as console:
            console.write(f"[   12.345678] {text}\r\n".encode())

    def does(self, command: Sequence[str], input: str | bytes | None) -> None:
        assert isinstance(input, bytes)
        if not self.deaf:
            self.say(input.decode().strip().removeprefix("<5>"))


@pytest.fixture
def machine(tmp_path: Path) -> _FakeMachine:
    return _FakeMachine(tmp_path)


def test_between_two_marks(machine: _FakeMachine) -> None:
    log = KernelLog(machine)
    machine.say("before")
    begin = log.mark("test_a")
    machine.say("within")
    end = log.mark("test_a ends")
    machine.say("after")
    assert log.between(begin, end) == "[   12.345678] within\n"
    assert log.between(end) == "[   12.345678] after\n"


def test_marks_of_a_machine_that_died(machine: _FakeMachine) -> None:
    log = KernelLog(machine)
    begin = log.mark("test_a")
    machine.say("Kernel panic - not syncing: told to")
    machine.died = "Kernel panic - not syncing: told to"
    end = log.mark("test_a ends")
    assert [s.kind for s in find_splats(log.between(begin, end))] == [SplatKind.PANIC]
    assert log.between(end, log.mark("next")) == ""


def test_a_log_outlives_its_file(machine: _FakeMachine) -> None:
    log = KernelLog(machine)
    with log.held() as held:
        mark = log.mark("the last scenario ends")
        machine.say("late")
        machine.console.unlink()
        assert held.since(mark) == "[   12.345678] late\n"
        assert held.since(BEGINNING).startswith("[    0.000000] Linux\n")
        assert held.all().endswith(b"late\r\n")


def test_a_mark_that_does_not_show(machine: _FakeMachine) -> None:
    machine.deaf = True
    with pytest.raises(ProvisionError, match="waiting for testbed-mark"):
        KernelLog(machine).mark("test_a", timeout=0.1)


_WARNING = (
    "------------[ cut here ]------------",
    "WARNING: connection.c:77 at smbdirect_inner+0x2a/0x3b0 [smbdirect], CPU#1: smbd/198",
    "Modules linked in: smbdirect(OE)",
    "Call Trace:",
    " smbdirect_inner+0x2a/0x3b0 [smbdirect]",
    " smbdirect_outer+0xd/0x20 [smbdirect]",
    "---[ end trace 0000000000000000 ]---",
)


def _fingerprints(log: KernelLog, start: Mark, end: Mark | None = None) -> list[str]:
    return [f.splat.fingerprint for f in log.splats(start, end)]


@pytest.mark.parametrize("cut", range(1, len(_WARNING)))
def test_a_mark_within_a_report(machine: _FakeMachine, cut: int) -> None:
    log = KernelLog(machine)
    begin = log.mark("test_a")
    for line in _WARNING[:cut]:
        machine.say(line)
    border = log.mark("test_a ends")
    for line in _WARNING[cut:]:
        machine.say(line)
    end = log.mark("test_b ends")
    whole = ["WARNING:smbdirect_inner:smbdirect_outer"]
    # It belongs to where its first line is, and that is the one after "cut here".
    assert _fingerprints(log, begin, border) == (whole if cut > 1 else [])
    assert _fingerprints(log, border, end) == ([] if cut > 1 else whole)


def test_a_report_that_grows_is_the_same_report(machine: _FakeMachine) -> None:
    log = KernelLog(machine)
    begin = log.mark("test_a")
    found = []
    for line in _WARNING:
        machine.say(line)
        found.append([f.position for f in log.splats(begin)])
    assert found[0] == []
    assert len(found[1]) == 1
    assert all(positions == found[1] for positions in found[1:])


def test_a_line_that_is_being_written_is_not_judged(machine: _FakeMachine) -> None:
    log = KernelLog(machine)
    begin = log.mark("test_a")
    with machine.console.open("a") as console:
        console.write("[   12.345678] BUG: unable to handle ker")
    assert log.splats(begin) == []
    machine.died = "killed"
    assert [f.splat.kind for f in log.splats(begin)] == [SplatKind.OOPS]


def test_what_an_earlier_report_says_later_is_no_report(machine: _FakeMachine) -> None:
    log = KernelLog(machine)
    machine.say("BUG: unable to handle page fault for address: ffffc900000000ff")
    begin = log.mark("test_b")
    machine.say("Oops: 0000 [#1] SMP NOPTI")
    machine.say("RIP: 0010:smbdirect_inner+0x2a/0x3b0 [smbdirect]")
    assert log.splats(begin, log.mark("end")) == []
