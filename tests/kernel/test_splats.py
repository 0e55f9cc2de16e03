"""Finding the kernel's reports in recorded logs, and telling them apart."""

from __future__ import annotations

import pytest
from tests.helpers.paths import DATA

from smbdirect_testbed.kernel.splats import TABLE, SplatKind, Verdict, find_splats

_LOGS = DATA / "kernel_log"


def _read(name: str) -> str:
    return (_LOGS / f"{name}.log").read_text()


@pytest.mark.parametrize(
    ("name", "kind", "title", "innermost"),
    [
        ("oops", SplatKind.OOPS, "BUG: kernel NULL pointer dereference", "smbdirect_inner"),
        ("bug", SplatKind.LIST, "list_del corruption, ffffd23500d4bb10->next", "smbdirect_inner"),
        ("warning", SplatKind.WARNING, "WARNING: splat.c:15 at smbdirect_inner", "smbdirect_inner"),
        ("warning-message", SplatKind.WARNING, "WARNING: splat.c:16", "smbdirect_inner"),
        ("warning-6.12", SplatKind.WARNING, "WARNING: CPU: 1 PID: 488 at", "ib_free_cq"),
        ("refcount", SplatKind.REFCOUNT, "refcount_t: addition on 0", "smbdirect_inner"),
        ("kasan", SplatKind.KASAN, "BUG: KASAN: slab-use-after-free", "smbdirect_socket_shutdown"),
        ("lockdep", SplatKind.LOCKDEP, "WARNING: possible circular", "smbdirect_connection_recv"),
        ("hung-task", SplatKind.HUNG_TASK, "INFO: task insmod:201 blocked", "smbdirect_outer"),
        ("panic", SplatKind.PANIC, "Kernel panic - not syncing: sysrq", "sysrq_handle_crash"),
        (
            "rcu-stall",
            SplatKind.RCU_STALL,
            "rcu: INFO: rcu_preempt self",
            "idempotent_init",
        ),
        ("soft-lockup", SplatKind.LOCKUP, "watchdog: BUG: soft lockup", "idempotent_init"),
        ("device-held", SplatKind.DEVICE_HELD, "unregister_netdevice: waiting for", ""),
        (
            "out-of-memory",
            SplatKind.OUT_OF_MEMORY,
            "Out of memory: Killed process 73 (python3)",
            "",
        ),
        ("clock", SplatKind.CLOCK, "clocksource: timekeeping watchdog", ""),
        ("kfence", SplatKind.KFENCE, "BUG: KFENCE: out-of-bounds read in", "smbdirect_inner"),
        ("kmsan", SplatKind.KMSAN, "BUG: KMSAN: uninit-value in", "smbdirect_inner"),
        ("kcsan", SplatKind.KCSAN, "BUG: KCSAN: data-race in", "smbdirect_inner:smbdirect_other"),
        ("dma", SplatKind.DMA, "DMA-API: rxe 0000:00:04.0: device driver", "smbdirect_inner"),
        ("usercopy", SplatKind.USERCOPY, "usercopy: Kernel memory exposure", "smbdirect_inner"),
        ("ubsan", SplatKind.UBSAN, "UBSAN: array-index-out-of-bounds in fs/", "smbdirect_inner"),
        ("odebug", SplatKind.OBJECT, "ODEBUG: free active (active state 0)", "smbdirect_inner"),
        ("kobject", SplatKind.OBJECT, "kobject: kobject (00000000c2f1b6d3):", "smbdirect_inner"),
        ("checksum", SplatKind.CHECKSUM, "rxe0: hw csum failure", "__skb_checksum_complete"),
        ("nobody-cared", SplatKind.INTERRUPT, "irq 11: nobody cared", "handle_irq_event"),
        ("chain-key", SplatKind.LOCKDEP, "WARNING: chain_key collision", "smbdirect_inner"),
        ("unwinder", SplatKind.UNWINDER, "WARNING: kernel stack frame pointer", ""),
        ("allocation-stall", SplatKind.ALLOCATION_STALL, "smbd: page allocation stall", ""),
        ("cm-id-held", SplatKind.LEAK, "cm_destroy_id_wait_timeout: cm_id=", ""),
        ("remark", SplatKind.REMARK, "WARNING: Flushing system-wide", ""),
        ("warning-condition", SplatKind.WARNING, "WARNING: [time_after(", "smbdirect_inner"),
        ("after-a-prompt", SplatKind.OOPS, "BUG: unable to handle page", "smbdirect_inner"),
    ],
)
def test_one_report(name: str, kind: SplatKind, title: str, innermost: str) -> None:
    splats = find_splats(_read(name))
    assert len(splats) == 1, [s.title for s in splats]
    (splat,) = splats
    assert splat.kind is kind
    assert splat.title.startswith(title)
    assert splat.fingerprint.startswith(f"{kind}:{innermost}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bug", ["BUG"]),
        ("list-fault", ["oops"]),
        ("oops", ["oops"]),
        ("page-allocation", ["page allocation"]),
        ("refcount", ["refcount"]),
        ("slab-leftover", ["slab", "slab"]),
        ("warning", ["WARNING"]),
        ("warning-message", ["WARNING"]),
    ],
)
def test_user_mode_linux_without_frame_pointers(name: str, expected: list[str]) -> None:
    splats = find_splats(_read(f"uml-guessed-{name}"))
    assert [s.kind for s in splats] == expected
    assert all(s.fingerprint.startswith(f"{s.kind}:smbdirect_inner") for s in splats)


def test_a_task_that_hangs_for_longer_is_the_same_mistake() -> None:
    first, second = find_splats(_read("uml-guessed-hung-task"))
    assert first.fingerprint == second.fingerprint
    assert first.title != second.title


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


def test_every_kind_has_a_recorded_sample() -> None:
    found = {s.kind for file in _LOGS.glob("*.log") for s in find_splats(file.read_text())}
    assert found == set(SplatKind)


def test_every_kind_has_a_verdict() -> None:
    assert {row.kind for row in TABLE} == set(SplatKind)
    assert len(TABLE) == len(SplatKind)
    assert all(row.why for row in TABLE if row.verdict is not Verdict.FAILURE)


def test_a_checker_that_gave_up_is_no_failure() -> None:
    splats = find_splats(_read("checker-off"))
    assert [s.kind for s in splats] == [SplatKind.CHECKER_OFF] * 2
    assert not any(s.fails for s in splats)


def test_a_line_of_somebody_else_within_a_trace() -> None:
    lines = _read("warning").splitlines(keepends=True)
    middle = next(i for i, line in enumerate(lines) if "smbdirect_outer" in line)
    lines.insert(middle, "[  101.000000] smbd did something else\n")
    (splat,) = find_splats("".join(lines))
    assert splat.fingerprint == find_splats(_read("warning"))[0].fingerprint
    assert splat.trace[-1] == "---[ end trace 0000000000000000 ]---"


def test_the_trace_of_a_lock_report_may_be_far_away() -> None:
    lines = _read("lockdep").splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if "stack backtrace:" in line)
    chain = ["[  101.000000]        some_lock_holder+0x1/0x2\n"] * 1000
    (splat,) = find_splats("".join(lines[:at] + chain + lines[at:]))
    assert splat.fingerprint == find_splats(_read("lockdep"))[0].fingerprint


def test_a_guess_is_no_caller() -> None:
    """What x86 marks as a guess; User Mode Linux without frame pointers has nothing else."""
    text = (
        "WARNING: a.c:1 at inner+0x2a/0x3b0, CPU#1: smbd/198\n"
        "Call Trace:\n {guess}wrong+0x3/0x9\n outer+0x1/0x2\n outer2+0x1/0x2\n outer3+0x1/0x2\n"
    )
    sure = find_splats(text.format(guess="? "))[0].fingerprint
    assert sure == "WARNING:inner:outer:outer2:outer3"
    uml = (
        "WARNING: a.c:1 at inner+0x2a/0x3b0, CPU#1: smbd/198\nCall Trace:\n"
        " [<6003081e>] ? show_stack+0x188/0x197\n [<68807058>] ? inner+0x58/0x2cd\n"
        " [<6068c105>] ? pointer_to_this+0x0/0x3b\n [<688072da>] ? outer+0xd/0xd33 [smbdirect]\n"
    )
    assert find_splats(uml)[0].fingerprint == "WARNING:inner:outer"


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        (
            "INFO: task smbd:211 blocked for more than 143 seconds.",
            "hung task:INFO: task blocked for more than # seconds.",
        ),
        (
            "BUG: scheduling while atomic: kworker/1:2/211/0x00000002",
            "BUG:BUG: scheduling while atomic:",
        ),
        (
            "smbd: page allocation failure: order:9, mode:0x820(GFP_ATOMIC), nodemask=(null)",
            "page allocation:: page allocation failure: order:#, mode:#(GFP_ATOMIC),"
            " nodemask=(null)",
        ),
    ],
)
def test_a_fingerprint_without_a_trace_has_no_numbers_and_no_task(
    title: str, expected: str
) -> None:
    assert find_splats(title)[0].fingerprint == expected


def test_lost_time_is_no_failure() -> None:
    kinds = {kind for kind in SplatKind if not kind.fails}
    assert {SplatKind.RCU_STALL, SplatKind.LOCKUP, SplatKind.CLOCK} <= kinds
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
    # All of them are made in one function.
    names = [p.stem for p in _LOGS.glob("*.log") if not p.stem.startswith("uml")]
    splats = [s for n in names for s in find_splats(_read(n)) if "smbdirect_inner" not in str(s)]
    fingerprints = [s.fingerprint for s in splats]
    assert len(fingerprints) == len(set(fingerprints)) > 10


def test_several_reports_keep_their_order() -> None:
    text = _read("warning") + _read("harmless") + _read("oops") + _read("panic")
    kinds = [s.kind for s in find_splats(text)]
    assert kinds == [SplatKind.WARNING, SplatKind.OOPS, SplatKind.PANIC]


def test_carriage_returns_and_caller_ids() -> None:
    text = _read("oops").replace("\n", "\r\n").replace("] ", "][  T197] ", 1)
    (splat,) = find_splats(text)
    assert splat.title == "BUG: kernel NULL pointer dereference, address: 0000000000000018"
