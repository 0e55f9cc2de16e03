"""Finding the kernel's reports in recorded logs, and dividing a log by markers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest
from tests.helpers.fake_machine import FakeMachine
from tests.helpers.paths import DATA

from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.machine.kernel_log import BEGINNING, KernelLog, SplatKind, find_splats

_LOGS = DATA / "kernel_log"


def _read(name: str) -> str:
    return (_LOGS / f"{name}.log").read_text()


@pytest.mark.parametrize(
    ("name", "kind", "title", "innermost"),
    [
        ("oops", SplatKind.OOPS, "BUG: kernel NULL pointer dereference", "smbdirect_inner"),
        ("bug", SplatKind.BUG, "kernel BUG at lib/list_debug.c:56!", "__list_del_entry_valid"),
        ("warning", SplatKind.WARNING, "WARNING: splat.c:15 at smbdirect_inner", "smbdirect_inner"),
        ("warning-message", SplatKind.WARNING, "WARNING: splat.c:16", "smbdirect_inner"),
        ("warning-6.12", SplatKind.WARNING, "WARNING: CPU: 1 PID: 488 at", "ib_free_cq"),
        ("refcount", SplatKind.REFCOUNT, "refcount_t: addition on 0", "smbdirect_inner"),
        ("kasan", SplatKind.KASAN, "BUG: KASAN: slab-use-after-free", "smbdirect_socket_shutdown"),
        ("lockdep", SplatKind.LOCKDEP, "WARNING: possible circular", "smbdirect_connection_recv"),
        ("hung-task", SplatKind.HUNG_TASK, "INFO: task insmod:201 blocked", "smbdirect_outer"),
        ("panic", SplatKind.PANIC, "Kernel panic - not syncing: sysrq", "sysrq_handle_crash"),
        ("rcu-stall", SplatKind.RCU_STALL, "rcu: INFO: rcu_preempt self-detected", "native_queued"),
        ("soft-lockup", SplatKind.LOCKUP, "watchdog: BUG: soft lockup", "native_queued"),
        ("device-held", SplatKind.DEVICE_HELD, "unregister_netdevice: waiting for", ""),
        (
            "out-of-memory",
            SplatKind.OUT_OF_MEMORY,
            "Out of memory: Killed process 73 (python3)",
            "",
        ),
        ("clock", SplatKind.CLOCK, "clocksource: timekeeping watchdog", ""),
    ],
)
def test_one_report(name: str, kind: SplatKind, title: str, innermost: str) -> None:
    splats = find_splats(_read(name))
    assert len(splats) == 1, [s.title for s in splats]
    (splat,) = splats
    assert splat.kind is kind
    assert splat.title.startswith(title)
    assert splat.fingerprint.startswith(f"{kind}:{innermost}")


def test_a_report_that_causes_another() -> None:
    first, second = find_splats(_read("scheduling-while-atomic"))
    assert first.kind is SplatKind.BUG
    assert first.title == "BUG: scheduling while atomic: insmod/198/0x00000002"
    assert "smbdirect_inner" in first.fingerprint
    assert second.kind is SplatKind.WARNING
    assert second.title.endswith(
        "initcall splat_init+0x0/0xff0 [splat] returned with preemption imbalance "
    )


def test_harmless_lines_are_no_reports() -> None:
    assert find_splats(_read("harmless")) == []


def test_lost_time_is_no_failure() -> None:
    kinds = {kind for kind in SplatKind if not kind.fails}
    assert kinds == {SplatKind.RCU_STALL, SplatKind.LOCKUP, SplatKind.CLOCK}
    assert not find_splats(_read("rcu-stall"))[0].fails
    assert find_splats(_read("hung-task"))[0].fails


def test_the_message_of_a_warning_is_kept() -> None:
    (splat,) = find_splats(_read("warning-message"))
    assert splat.title.endswith(": smbdirect: 3 credits left")
    assert splat.trace[0] == "smbdirect: 3 credits left"


@pytest.mark.parametrize("name", ["oops", "warning", "bug", "refcount"])
def test_a_trace_goes_to_its_end_and_no_further(name: str) -> None:
    (splat,) = find_splats(_read(name) + "[   99.000000] smbd did something else\n")
    assert splat.trace[-1] == "---[ end trace 0000000000000000 ]---"


@pytest.mark.parametrize("name", ["lockdep", "hung-task", "soft-lockup"])
def test_a_trace_without_an_end_line(name: str) -> None:
    (splat,) = find_splats(_read(name) + "[   99.000000] smbd did something else\n")
    assert splat.trace[-1].strip() == "</TASK>"


def test_all_of_a_kasan_report_is_kept() -> None:
    (splat,) = find_splats(_read("kasan"))
    assert any("Freed by task 214" in line for line in splat.trace)
    assert any("Memory state around" in line for line in splat.trace)
    assert "Disabling lock debugging" not in splat.trace[-1]


def test_a_trace_cut_off_by_the_end_of_the_machine() -> None:
    lines = _read("oops").splitlines()
    (splat,) = find_splats("\n".join(lines[:14]))
    assert splat.kind is SplatKind.OOPS
    assert splat.fingerprint == "oops:smbdirect_inner"
    assert len(splat.trace) == 12


def test_fingerprints_do_not_depend_on_addresses_processor_or_task() -> None:
    text = _read("oops")
    other = text.replace("insmod", "smbd").replace("CPU: 0", "CPU: 3").replace("+0x333", "+0x344")
    assert find_splats(other)[0].fingerprint == find_splats(text)[0].fingerprint


def test_fingerprints_of_different_failures_differ() -> None:
    # Those two warnings are in one function.
    names = [p.stem for p in _LOGS.glob("*.log") if p.stem != "warning-message"]
    fingerprints = [s.fingerprint for n in names for s in find_splats(_read(n))]
    assert len(fingerprints) == len(set(fingerprints))


def test_several_reports_keep_their_order() -> None:
    text = _read("warning") + _read("harmless") + _read("oops") + _read("panic")
    kinds = [s.kind for s in find_splats(text)]
    assert kinds == [SplatKind.WARNING, SplatKind.OOPS, SplatKind.PANIC]


def test_carriage_returns_and_caller_ids() -> None:
    text = _read("oops").replace("\n", "\r\n").replace("] ", "][  T197] ", 1)
    (splat,) = find_splats(text)
    assert splat.title == "BUG: kernel NULL pointer dereference, address: 0000000000000018"


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
