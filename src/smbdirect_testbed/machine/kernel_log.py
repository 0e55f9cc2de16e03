"""Reports of the kernel about itself (oops, BUG, WARNING, …), found and attributed by markers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import BinaryIO
from uuid import uuid4

from smbdirect_testbed.lib.errors import MachineDied, ProvisionError
from smbdirect_testbed.lib.wait import wait_until
from smbdirect_testbed.machine.machine import Machine


class SplatKind(StrEnum):
    """What a report of the kernel is about."""

    PANIC = "panic"
    OOPS = "oops"
    BUG = "BUG"
    KASAN = "KASAN"
    KFENCE = "KFENCE"
    UBSAN = "UBSAN"
    REFCOUNT = "refcount"
    OUT_OF_MEMORY = "out of memory"
    LOCKDEP = "lockdep"
    WARNING = "WARNING"
    HUNG_TASK = "hung task"
    DEVICE_HELD = "device held"
    RCU_STALL = "RCU stall"
    LOCKUP = "lockup"
    CLOCK = "clock"

    @property
    def fails(self) -> bool:
        """Whether a report of this kind is a failure.

        Those about lost time are not: an emulated machine on a busy computer loses it without
        anything being wrong with its kernel.
        """
        return self not in (SplatKind.RCU_STALL, SplatKind.LOCKUP, SplatKind.CLOCK)


@dataclass(frozen=True)
class Splat:
    """One report of the kernel.

    :param title: its first line, without time stamp, and what the code said about it
    :param trace: all of its lines, without time stamps
    :param fingerprint: its kind and the innermost functions of its trace: the same for the same
        failure, whatever the addresses, the processor, the task
    """

    kind: SplatKind
    title: str
    trace: tuple[str, ...]
    fingerprint: str

    @property
    def fails(self) -> bool:
        """Whether this is a failure; see :attr:`SplatKind.fails`."""
        return self.kind.fails


_PREFIX = re.compile(r"^(?:<\d+>)?\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ?")

_STARTS: tuple[tuple[SplatKind, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (SplatKind.PANIC, r"Kernel panic - "),
        (SplatKind.KASAN, r"BUG: KASAN: "),
        (SplatKind.KFENCE, r"BUG: KFENCE: "),
        (SplatKind.UBSAN, r"UBSAN: "),
        (SplatKind.LOCKUP, r"(?:watchdog: )?BUG: (?:soft lockup|workqueue lockup)"),
        (SplatKind.LOCKUP, r"(?:watchdog: )?(?:CPU\d+: )?Watchdog detected hard LOCKUP"),
        (
            SplatKind.LOCKDEP,
            r"WARNING: (?:possible (?:circular|recursive|irq lock)|suspicious RCU usage"
            r"|inconsistent lock state|bad (?:unlock balance|contention)|held lock freed"
            r"|lock held when|Nested lock|\S+-safe -> \S+-unsafe|\S+ still has locks held)"
            r"|\[ BUG: Invalid wait context|INFO: trying to register non-static key",
        ),
        (SplatKind.OOPS, r"BUG: (?:unable to handle |kernel NULL pointer dereference)"),
        (SplatKind.OOPS, r"(?:Oops: )?general protection fault"),
        (SplatKind.OOPS, r"(?:Internal error: )?Oops\b|double fault: |stack segment: "),
        (SplatKind.OOPS, r"Unable to handle kernel "),
        (SplatKind.BUG, r"kernel BUG at |BUG: "),
        (SplatKind.REFCOUNT, r"refcount_t: "),
        (SplatKind.OUT_OF_MEMORY, r"(?:Memory cgroup out|Out) of memory: Killed process "),
        # The second form is that of recent kernels.
        (SplatKind.WARNING, r"WARNING: (?:CPU: \d+ PID: \d+ |\S+:\d+ at |at \S+\+0x)"),
        (SplatKind.HUNG_TASK, r"INFO: task \S.* blocked for more than \d+ seconds"),
        (SplatKind.DEVICE_HELD, r"unregister_netdevice: waiting for \S+ to become free"),
        (
            SplatKind.RCU_STALL,
            r"(?:rcu: )?INFO: \S+ (?:self-)?detected (?:expedited )?stalls?\b"
            r"|rcu: \S+ kthread (?:timer wakeup didn't happen|starved)",
        ),
        (
            SplatKind.CLOCK,
            r"clocksource: (?:timekeeping watchdog .*unstable|.*Marking clocksource"
            r"|Long readout interval)",
        ),
    )
)

_CUT_HERE = "------------[ cut here ]------------"
_ENDS = re.compile(r"---\[ end (?:trace|Kernel panic)")
_RULE = re.compile(r"={20,}$")
_MARK = re.compile(r"testbed-mark [0-9a-f]{12}")
_TRACE_BEGINNINGS = ("Call Trace:", "Call trace:")
_FUNCTION = re.compile(r"^(?P<name>[A-Za-z_][\w.]*)\+0x[0-9a-f]+/0x[0-9a-f]+")
_INNERMOST = re.compile(r"^RIP: 0010:(?P<name>[A-Za-z_][\w.]*)\+0x")
_IN_TRACE = re.compile(
    r"\s|$|[ER]IP: |[ER]SP: |R[A-D]X: |R[SD]I: |RBP: |R\d\d: |ORIG_RAX: |Code: |[FGC]S: |CR2: "
    r"|DR\d: |PKRU: |Modules linked in: |CPU: |Call Trace:|Call trace:|Sending NMI|NMI backtrace"
    r"|Showing |Hardware name: |Allocated by |Freed by |The buggy |Memory state |page|raw: |head: "
    r"|irq event stamp|hardirqs last|softirqs last|task:|---\[ end |flags: |>|==|Last potentially"
    r"|Second to last|which belongs|located |allocated |kfence-#|Kernel Offset: "
)
_BEFORE_TRACE = re.compile(
    r"#PF: |PGD |Oops: |Tainted: |in_atomic\(\)|no locks held|\d+ locks? held|Preemption disabled"
    r"|preempt_count: |rcu: |\"echo 0 > /proc|WARNING: |(?:Read|Write) of size "
)
_SINGLE_LINE = {SplatKind.CLOCK, SplatKind.DEVICE_HELD, SplatKind.OUT_OF_MEMORY}
_LINES_BEFORE_TRACE = 120
_LINES_MAX = 250
_MESSAGE_LINES = 3
_FINGERPRINT_FUNCTIONS = 5

_MACHINERY = re.compile(
    r"(?:__)?dump_stack(?:_lvl)?|show_stack|print_\w+|kasan_\w+|__kasan_\w+|__asan_\w+|__warn"
    r"|report_bug|handle_bug|(?:asm_)?exc_\w+|(?:__)?die(?:_\w+)?|oops_\w+|page_fault_oops"
    r"|do_user_addr_fault|do_trap|do_error_trap|panic|check_(?:noncircular|prev_add|deadlock)|__ubsan_\w+|ubsan_\w+"
    r"|lockdep_rcu_suspicious|__lock_acquire|lock_acquire(?:\.part\.\d+)?|validate_chain"
    r"|__might_resched|__might_sleep|__schedule(?:_bug)?|schedule(?:_timeout|_preempt_disabled)?|io_schedule"
    r"|refcount_warn_saturate|vpanic|fixup_exception|\w*_fault_oops|bad_area_nosemaphore|__die_body"
)


def find_splats(text: str) -> list[Splat]:
    """The kernel's reports in a piece of kernel log or console, in order."""
    lines = [_PREFIX.sub("", line.rstrip("\r\0")) for line in text.split("\n")]
    splats = []
    position = 0
    while position < len(lines):
        if kind := _start_kind(lines[position]):
            end = _find_end(lines, position, kind)
            splats.append(_make(kind, lines[position:end], _message_before(lines, position)))
            position = end
        else:
            position += 1
    return splats


def _start_kind(line: str) -> SplatKind | None:
    return next((kind for kind, pattern in _STARTS if pattern.match(line)), None)


def _message_before(lines: list[str], start: int) -> list[str]:
    """What the kernel's code says about a report, between "cut here" and the report's start."""
    for length in range(_MESSAGE_LINES + 1):
        before = start - length - 1
        if before >= 0 and lines[before] == _CUT_HERE:
            return lines[start - length : start]
    return []


def _find_end(lines: list[str], start: int, kind: SplatKind) -> int:
    """The index after the last line of the report that begins at ``start``."""
    if kind in _SINGLE_LINE:
        return start + 1
    in_trace = False
    connected = True
    last = start + 1
    for i in range(start + 1, min(len(lines), start + _LINES_MAX)):
        line = lines[i]
        if _ENDS.match(line):
            return i + 1
        if line == _CUT_HERE or _MARK.search(line):
            return last
        if kind is SplatKind.KASAN and _RULE.match(line):
            return i + 1
        if line.startswith(_TRACE_BEGINNINGS):
            in_trace = connected = True
        elif in_trace:
            if not _IN_TRACE.match(line):
                return last
        elif i - start > _LINES_BEFORE_TRACE or _unrelated(kind, line):
            return last
        else:
            # Kept if a trace follows; if none does, as far as it looks like a report.
            connected = connected and bool(_IN_TRACE.match(line) or _BEFORE_TRACE.match(line))
        if connected:
            last = i + 1
    return last


def _unrelated(kind: SplatKind, line: str) -> bool:
    """Whether a line before any trace begins a report of its own."""
    other = _start_kind(line)
    # An oops says in several lines that it is one; a refcount is reported by a WARNING.
    return other is not None and {kind, other} not in _TOGETHER


_TOGETHER: tuple[set[SplatKind], ...] = (
    {SplatKind.OOPS},
    {SplatKind.OOPS, SplatKind.BUG},
    {SplatKind.REFCOUNT, SplatKind.WARNING},
    {SplatKind.RCU_STALL},
)


def _make(kind: SplatKind, lines: list[str], message: list[str]) -> Splat:
    while len(lines) > 1 and not lines[-1].strip():
        lines = lines[:-1]
    functions: list[str] = []
    for name in _functions(lines):
        if not _MACHINERY.fullmatch(name) and name not in functions[-1:]:
            functions.append(name)
    return Splat(
        kind,
        ": ".join((lines[0].strip(), *message)),
        (*message, *lines),
        ":".join((kind, *(functions[:_FINGERPRINT_FUNCTIONS] or [_without_numbers(lines[0])]))),
    )


def _functions(lines: list[str]) -> Iterator[str]:
    """The functions of the first trace, from the innermost one."""
    traces = 0
    for line in lines:
        if line.startswith(_TRACE_BEGINNINGS):
            traces += 1
            if traces > 1:
                return
        found = _INNERMOST.match(line)
        if not found and traces:
            found = _FUNCTION.match(line.strip())
        if found:
            yield _base_name(found["name"])


def _base_name(function: str) -> str:
    """The name in the source, without what the compiler appended (``.isra.0``, ``.cold``)."""
    return function.partition(".")[0]


def _without_numbers(title: str) -> str:
    return re.sub(r"\b(?:0x)?[0-9a-f]*\d[0-9a-f]*\b", "#", title)[:80]


@dataclass(frozen=True)
class Mark:
    """A point in a machine's kernel log.

    :param start: bytes of the console before the marker
    :param end: bytes of the console up to the marker's end
    """

    label: str
    start: int
    end: int


BEGINNING = Mark("begin", 0, 0)
"""Before all that a kernel said."""


class HeldLog:
    """A kernel log that can be read although its machine and its file are gone.

    ::

        with environment.kernel_logs["machine"].held() as log:
            environment_is_taken_down()
            late = log.since(mark)
    """

    def __init__(self, console: BinaryIO) -> None:
        self._console = console

    def all(self) -> bytes:
        """Everything, as the console has it."""
        self._console.seek(0)
        return self._console.read()

    def since(self, mark: Mark) -> str:
        """What the kernel said after a mark."""
        self._console.seek(mark.end)
        return _text(self._console.read())


class KernelLog:
    """A machine's kernel log, divided by markers that are written into it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._numbers = count(1)
        self._run = uuid4().hex[:8]

    def mark(self, label: str, *, timeout: float = 30) -> Mark:
        """Write a marker and wait until it shows on the console.

        When the machine has died this is the console's end, at once.

        :param label: what begins or ends here, for people who read the log
        :param timeout: seconds for the marker to show
        :raises ProvisionError: the marker does not show although the machine lives
        """
        token = f"testbed-mark {self._run}{next(self._numbers):04x}"
        start = self._size()
        with suppress(MachineDied):
            self._machine.run(
                ["tee", "/dev/kmsg"], input=f"<5>{token} {label}\n".encode(), timeout=timeout
            )
        found = wait_until(
            lambda: self._find(token, start),
            f"{token} on the console",
            timeout=timeout,
            interval=0.005,
        )
        return Mark(label, *found)

    def between(self, start: Mark, end: Mark | None = None) -> str:
        """What the kernel said between two marks, or since ``start``."""
        with self._machine.console.open("rb") as console:
            console.seek(start.end)
            data = console.read() if end is None else console.read(max(0, end.start - start.end))
        return _text(data)

    @contextmanager
    def held(self) -> Iterator[HeldLog]:
        """The log, also when the machine's directory goes while the context lasts."""
        with self._machine.console.open("rb") as console:
            yield HeldLog(console)

    def _find(self, token: str, start: int) -> tuple[int, int] | None:
        dead = self._machine.death()
        with self._machine.console.open("rb") as console:
            console.seek(start)
            data = console.read()
        if (at := data.find(token.encode())) >= 0 and (end := data.find(b"\n", at)) >= 0:
            return start + data.rfind(b"\n", 0, at) + 1, start + end + 1
        if dead:
            return start + len(data), start + len(data)
        return None

    def _size(self) -> int:
        try:
            return self._machine.console.stat().st_size
        except FileNotFoundError as e:
            raise ProvisionError(f"machine {self._machine.name} has no console") from e


def _text(console: bytes) -> str:
    return console.decode(errors="replace").replace("\r\n", "\n")
