"""What a kernel says about itself: every kind of report, by what it looks like, what it means.

The forms are those of Linux 7.3, and of others back to 4.x where they cost nothing. To add one, add
a pattern here and a recorded sample to ``tests/data/kernel_log``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property


class SplatKind(StrEnum):
    """What a report of the kernel is about."""

    PANIC = "panic"
    OOPS = "oops"
    BUG = "BUG"
    KASAN = "KASAN"
    KFENCE = "KFENCE"
    KMSAN = "KMSAN"
    KCSAN = "KCSAN"
    UBSAN = "UBSAN"
    REFCOUNT = "refcount"
    LIST = "list corruption"
    USERCOPY = "usercopy"
    SLAB = "slab"
    LEAK = "leak"
    OBJECT = "object"
    DMA = "DMA"
    INTERRUPT = "interrupt"
    CHECKSUM = "checksum"
    ALLOCATION = "page allocation"
    OUT_OF_MEMORY = "out of memory"
    LOCKDEP = "lockdep"
    WARNING = "WARNING"
    HUNG_TASK = "hung task"
    DEVICE_HELD = "device held"
    CHECKER_OFF = "checker off"
    UNWINDER = "unwinder"
    ALLOCATION_STALL = "page allocation stall"
    RCU_STALL = "RCU stall"
    LOCKUP = "lockup"
    CLOCK = "clock"
    REMARK = "remark"

    @property
    def verdict(self) -> Verdict:
        """What a report of this kind means for a scenario."""
        return _VERDICTS[self]

    @property
    def fails(self) -> bool:
        """Whether a report of this kind fails the scenario in which it was made."""
        return self.verdict is Verdict.FAILURE


class Verdict(StrEnum):
    """What a report means: it fails a scenario, is worth a line in the summary, or neither."""

    FAILURE = "failure"
    NOTE = "note"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Row:
    """One kind of report.

    :param patterns: regular expressions; one matches the beginning of the report's first line
    :param why: for people who wonder about the verdict
    :param one_line: the report has no trace
    """

    kind: SplatKind
    verdict: Verdict
    patterns: tuple[str, ...]
    why: str = ""
    one_line: bool = False

    @cached_property
    def start(self) -> re.Pattern[str]:
        """Matches the beginning of the report's first line; compiled when it is needed."""
        return re.compile("|".join(f"(?:{p})" for p in self.patterns))


FAILURE, NOTE, NOTHING = Verdict.FAILURE, Verdict.NOTE, Verdict.NOTHING

TABLE: tuple[Row, ...] = (
    Row(
        SplatKind.OOPS,
        FAILURE,
        (
            r"BUG: (?:unable to handle |kernel NULL pointer dereference)",
            r"BUG: .* stack guard page was hit at ",
            r"(?:Oops: |segment-related )?general protection fault\b",
            r"(?:Internal error: )?Oops\b",
            r"Internal error: ",
            r"(?:Oops: )?(?:divide[ _]error|invalid opcode|stack segment|alignment check"
            r"|int3|bounds|double fault|coprocessor segment overrun): [0-9a-f]{4}\b",
            r"(?:traps: )?PANIC: double fault",
            # User Mode Linux has no oops: it panics.
            r"Kernel panic - not syncing: (?:Kernel mode (?:fault|signal)|Segfault with"
            r"|Kernel tried to access user memory)",
            # ARM.
            r"Unable to handle kernel |Unhandled (?:fault|prefetch abort): ",
        ),
    ),
    Row(SplatKind.PANIC, FAILURE, (r"Kernel panic - ",)),
    Row(SplatKind.KASAN, FAILURE, (r"BUG: KASAN: ",)),
    Row(SplatKind.KFENCE, FAILURE, (r"BUG: KFENCE: ",)),
    Row(SplatKind.KMSAN, FAILURE, (r"BUG: KMSAN: ",)),
    Row(SplatKind.KCSAN, FAILURE, (r"BUG: KCSAN: ",)),
    Row(SplatKind.UBSAN, FAILURE, (r"UBSAN: ",)),
    Row(
        SplatKind.LOCKUP,
        NOTE,
        (
            r"(?:(?:NMI )?watchdog: )?BUG: (?:soft lockup|workqueue lockup)",
            r"(?:(?:NMI )?watchdog: )?(?:CPU\d+: )?Watchdog detected hard LOCKUP",
        ),
        "an emulated machine on a busy computer loses time, and its kernel is well",
    ),
    Row(
        SplatKind.CHECKER_OFF,
        NOTE,
        (
            r"BUG: MAX_\w+ too low!",
            r"ODEBUG: Out of memory\. ODEBUG disabled",
            r"kmemleak: (?:Cannot|Memory pool empty)",
            r"INFO: lockdep is turned off",
            r"DMA-API: debugging (?:out of memory|disabled)",
        ),
        "from here on nothing is checked; that is no mistake of the driver's",
        one_line=True,
    ),
    Row(
        SplatKind.LEAK,
        FAILURE,
        (
            r"BUG: memory leak|unreferenced object(?:\s|$)",
            r"kmemleak: (?:\d+ new suspected memory leaks|unreferenced object)",
            r"ref_tracker: .*(?: users at$|leaked reference)",
            r"(?:restrack: )?BUG: RESTRACK detected leak of resources",
            # A connection's id that someone still holds long after it was to go.
            r"(?:infiniband \S+: )?cm_destroy_id_wait_timeout: ",
        ),
    ),
    Row(
        SplatKind.LOCKDEP,
        FAILURE,
        (
            r"(?:WARNING|\[ INFO|INFO): (?:possible (?:circular|recursive|irq lock)"
            r"|suspicious RCU usage|inconsistent lock state|bad (?:unlock balance|contention)"
            r"|held lock freed|lock held when|Nested lock|chain_key collision"
            r"|\S+-safe -> \S+-unsafe|\S+/\d+ still has locks held)",
            r"\[ BUG: (?:Invalid wait context|bad unlock balance|bad contention|held lock freed"
            r"|lock held when|Nested lock|\S+/\d+ still has locks held)",
            r"BUG: (?:Invalid wait context|bad unlock balance|held lock freed"
            r"|\S+/\d+ still has locks held)",
            r"INFO: (?:trying to register non-static key|HARDIRQ-safe|SOFTIRQ-safe)",
        ),
    ),
    Row(
        SplatKind.SLAB,
        FAILURE,
        (
            r"BUG \S.* \((?:Tainted|Not tainted)[^)]*\): ",
            r"kmem_cache_destroy \S+: Slab cache still has objects",
            r"INFO: (?:Allocated|Freed) in \S+\+0x",
            r"cache_from_obj: Wrong slab cache",
        ),
    ),
    Row(
        SplatKind.BUG,
        FAILURE,
        (
            r"kernel BUG at |BUG: |bad: scheduling from the idle thread",
            r"VFS: (?:Busy inodes after unmount|Close: file count is )",
        ),
    ),
    Row(
        SplatKind.REFCOUNT,
        FAILURE,
        (r"refcount_t: ",),
    ),
    Row(SplatKind.LIST, FAILURE, (r"list_(?:add|del)(?: corruption|.*corruption)",)),
    Row(
        SplatKind.USERCOPY,
        FAILURE,
        (r"usercopy: Kernel memory \w+ attempt detected", r"Bad or missing usercopy whitelist\?"),
    ),
    Row(
        SplatKind.OBJECT,
        FAILURE,
        (
            r"ODEBUG: (?!selftest|\d)\S+ \S+",
            r"kobject: (?:.*tried to init an initialized|.* is not initialized|\S+ failed for)",
            r"kobject_add_internal failed for ",
            r"sysfs: (?:cannot create duplicate filename|Cannot create duplicate)",
        ),
    ),
    Row(SplatKind.DMA, FAILURE, (r"DMA-API: (?!preallocated|debugging)\S+ .*: ",)),
    Row(
        SplatKind.INTERRUPT,
        FAILURE,
        (
            r"irq \d+: nobody cared",
            r"genirq: (?:Flags mismatch irq|Threaded irq requested)",
            r"(?:softirq: )?huh, entered softirq ",
        ),
    ),
    Row(SplatKind.CHECKSUM, FAILURE, (r"\S.*: hw csum failure",)),
    Row(
        SplatKind.ALLOCATION,
        FAILURE,
        (r"\S.*: (?:page|vmalloc|vmap)\S* allocation failure[:, ]", r"\S.*: vmalloc error: size "),
    ),
    Row(
        SplatKind.ALLOCATION_STALL,
        NOTE,
        (r"\S.*: page allocation stall",),
        "a busy computer",
    ),
    Row(
        SplatKind.OUT_OF_MEMORY,
        FAILURE,
        (r"(?:Memory cgroup out|Out) of memory: Kill(?:ed)? process ",),
        one_line=True,
    ),
    Row(
        SplatKind.UNWINDER,
        NOTE,
        (
            r"WARNING: kernel stack (?:regs|frame pointer) at ",
            r"WARNING: (?:can't (?:access registers|dereference)|stack recursion|unrecognized)",
        ),
        "a trace could not be followed to its end",
    ),
    Row(
        SplatKind.WARNING,
        FAILURE,
        # The second form is that of 7.x, with the condition before the file.
        (r"WARNING: (?:CPU: \d+ PID: \d+ |(?:\[.*\] )?\S+:\d+ at |at \S+\+0x|at \S+:\d+ \S+\+0x)",),
    ),
    Row(
        SplatKind.HUNG_TASK,
        FAILURE,
        (
            r"INFO: task \S.* (?:blocked(?: in I/O wait)?|can't die) for more than \d+ seconds",
            # A task's name may hold anything, also the end of a line.
            r".*:\d+ blocked(?: in I/O wait)? for more than \d+ seconds\.$",
        ),
    ),
    Row(
        SplatKind.DEVICE_HELD,
        FAILURE,
        (r"unregister_netdevice: waiting for \S+ to become free",),
    ),
    Row(
        SplatKind.RCU_STALL,
        NOTE,
        (
            r"(?:rcu: )?INFO: \S+ (?:self-)?detected (?:expedited )?stalls?\b",
            r"(?:rcu: )?\S+ kthread (?:timer wakeup didn't happen|starved)",
        ),
        "an emulated machine on a busy computer loses time, and its kernel is well",
    ),
    Row(
        SplatKind.CLOCK,
        NOTHING,
        (
            r"clocksource: (?:timekeeping watchdog .*unstable|.*Marking clocksource"
            r"|Long readout interval)",
        ),
        "as above, and of no consequence",
        one_line=True,
    ),
    Row(
        SplatKind.REMARK,
        NOTE,
        (r"WARNING: (?!Unprivileged eBPF|.* is deprecated)\S",),
        "words of some code, without a trace",
        one_line=True,
    ),
)
"""Every kind, and what it means. The first row of which a pattern matches decides."""

IN_WORDS = frozenset(
    (
        *(SplatKind.REFCOUNT, SplatKind.LIST, SplatKind.USERCOPY, SplatKind.SLAB),
        *(SplatKind.OBJECT, SplatKind.DMA),
    )
)
"""Kinds that are reported by a line in words and a WARNING or BUG, which has the trace."""

RULED = frozenset((SplatKind.KASAN, SplatKind.KFENCE, SplatKind.KMSAN, SplatKind.KCSAN))
"""Kinds whose reports end with a line of equals signs; their traces begin without a heading."""

_VERDICTS = {row.kind: row.verdict for row in TABLE}
_ONE_LINE = {row.kind for row in TABLE if row.one_line}


def kind_of(line: str) -> SplatKind | None:
    """The kind of report that begins with a line of the kernel's; None for none."""
    return next((row.kind for row in TABLE if row.start.match(line, _indent(line))), None)


def _indent(line: str) -> int:
    """Some kernels print a space too many; lines of a trace have more, or look like frames."""
    return 1 if line.startswith(" ") and not line.startswith("  ") else 0


def has_trace(kind: SplatKind) -> bool:
    """Whether reports of a kind have more than one line."""
    return kind not in _ONE_LINE
