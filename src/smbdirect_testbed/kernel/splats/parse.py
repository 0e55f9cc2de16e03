"""Finding the kernel's reports in a log: where each begins and ends, and what it is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from smbdirect_testbed.kernel.splats.fingerprint import fingerprint, trace_of
from smbdirect_testbed.kernel.splats.frames import Frame, begins_trace, frame_in
from smbdirect_testbed.kernel.splats.lines import kernel_lines
from smbdirect_testbed.kernel.splats.table import IN_WORDS, RULED, SplatKind, has_trace, kind_of


@dataclass(frozen=True)
class Splat:
    """One report of the kernel.

    :param title: its first line, without time stamp, and what the code said about it
    :param trace: all of its lines, without time stamps
    :param fingerprint: its kind and the innermost functions of its trace: the same for the same
        failure, whatever the addresses, the processor, the task
    :param line: the number of the line that it begins in, from 0. What comes later in the log
        does not change it
    """

    kind: SplatKind
    title: str
    trace: tuple[str, ...]
    fingerprint: str
    line: int = 0

    @property
    def frames(self) -> list[Frame]:
        """The places of its trace, from the innermost one."""
        return trace_of(self.kind, self.trace)

    @property
    def fails(self) -> bool:
        """Whether this is a failure; see :attr:`SplatKind.fails`."""
        return self.kind.fails


MARK = re.compile(r"testbed-mark [0-9a-f]{12}")
"""A line that divides a log; one may land in the middle of a report and is no part of it."""

_CUT_HERE = "------------[ cut here ]------------"
_ENDS = re.compile(r"---\[ end (?:trace|Kernel panic)")
_RULE = re.compile(r"={20,}$")
_IN_TRACE = re.compile(
    r"\s|$|[ER]?IP:? |[ER]SP: |R[A-D]X: |R[SD]I: |RBP: |R\d\d: |ORIG_RAX: |Code: |[FGC]S: |CR2: "
    r"|DR\d: |PKRU: |Modules linked in:|CPU: |Call Trace:|Call trace:|Sending NMI|NMI backtrace"
    r"|Showing |Hardware name: |Allocated by |Freed by |The buggy |Memory state |page|raw: |head: "
    r"|irq event stamp|hardirqs last|softirqs last|task:|---\[ end |flags: |>|==|Last potentially"
    r"|Second to last|which belongs|located |allocated |kfence-#|Kernel Offset: |Stack:|Tainted: "
    r"|INFO: task \S+ is blocked on |INFO: task \S+(?: <\w+>)? blocked on |\[<"
    r"|PC is at |LR is at |pc : |lr : |pstate: |sp : |x\d+\s*: |Process |Backtrace:|Thread overran"
    r"|Exception stack|Dumping ftrace|Stack traceback|Last Breaking|Krnl |NIP |LR "
)
_BEFORE_TRACE = re.compile(
    r"#PF: |PGD |Oops: |Tainted: |in_atomic\(\)|no locks held|\d+ locks? held|Preemption disabled"
    r"|preempt_count: |rcu: |\"echo 0 > /proc|WARNING: |(?:Read|Write) of size |-----|Slab 0x"
    r"|Object 0x|Disabling lock debugging|FIX |INFO: (?:Slab|Object|Allocated|Freed)|CPU#"
    r"|comm \"|backtrace|BUG: KASAN|ref_tracker: |Kernel panic"
)
_SLAB_WARNING = re.compile(r"WARNING: .*__slab_err\+")
_SLAB_OBJECT = re.compile(r"INFO: (?:Allocated|Freed|Slab|Object) ")
_LEAKS_COUNTED = re.compile(r"kmemleak: \d+ new suspected memory leaks")
_UML_BUG = "Kernel panic - not syncing: BUG!"
_LINES_BEFORE_TRACE = 120
_LINES_MAX = 250
_LOCKDEP_LINES = 3000
"""A circle of locks is shown with the trace of each; where it was closed comes last."""
_INTERLEAVED_LINES = 8
_LOCKDEP_HEAD = 40
"""Lines that say which locks, and where they were taken; all there is when a log is cut off."""
_MESSAGE_LINES = 3

_AT_ONCE = {SplatKind.DEVICE_HELD, SplatKind.LEAK}
"""Kinds whose trace, if there is one, follows without other lines between."""

_GOES_ON = {
    # An oops says in several lines that it is one.
    (SplatKind.OOPS, SplatKind.OOPS),
    (SplatKind.OOPS, SplatKind.BUG),
    (SplatKind.BUG, SplatKind.OOPS),
    (SplatKind.RCU_STALL, SplatKind.RCU_STALL),
    (SplatKind.DEVICE_HELD, SplatKind.LEAK),
    # Words, and then a WARNING or BUG that has the trace; or the other way round.
    *((kind, SplatKind.WARNING) for kind in IN_WORDS),
    *((kind, SplatKind.BUG) for kind in IN_WORDS),
    *((kind, SplatKind.OOPS) for kind in IN_WORDS),
    *((SplatKind.WARNING, kind) for kind in IN_WORDS),
}
"""Pairs of kinds, of which the second is the first's report going on."""


def find_splats(text: str) -> list[Splat]:
    """The kernel's reports in a piece of kernel log or console, in order."""
    lines = [line for line in kernel_lines(text) if not MARK.search(line.text)]
    texts = [line.text for line in lines]
    splats = []
    position = 0
    while position < len(texts):
        if kind := kind_of(texts[position]):
            end = _find_end(texts, position, kind)
            splats.append(_make(kind, texts, position, end, lines[position].number))
            position = end
        else:
            position += 1
    return splats


def _make(kind: SplatKind, texts: Sequence[str], start: int, end: int, number: int) -> Splat:
    before, after = _message(texts, start, end)
    while end > start + 1 and not texts[end - 1].strip():
        end -= 1
    body = list(texts[start:end])
    before = before or _registers_before(texts, start, kind)
    message = [line for line in (*before, *after) if not _is_register_line(line)]
    title = ": ".join((body[0].strip(), *message))
    trace = (*before, *body)
    kind = _kind_said(kind, title, message)
    return Splat(kind, title, trace, fingerprint(kind, title, body[0], trace), number)


def _kind_said(kind: SplatKind, title: str, message: Sequence[str]) -> SplatKind:
    """What a WARNING is about, when its message says so."""
    if kind is not SplatKind.WARNING:
        return kind
    said = (other for line in message if (other := kind_of(line)))
    return next((k for k in said if k in IN_WORDS), kind)


def _message(texts: Sequence[str], start: int, end: int) -> tuple[list[str], list[str]]:
    """What the kernel's code says about a report: before its first line, and after it.

    Before it, it stands below "cut here"; after it, between the first line and the list of modules.
    """
    before = _since_cut(texts, start)
    after: list[str] = []
    if texts[start].startswith("WARNING: "):
        for line in texts[start + 1 : min(end, start + 2 + _MESSAGE_LINES)]:
            if line.startswith(("Modules linked in:", "CPU: ")):
                return before, after
            after.append(line)
    return before, []


def _since_cut(texts: Sequence[str], start: int) -> list[str]:
    for length in range(min(_MESSAGE_LINES, start - 1) + 1):
        if texts[start - length - 1] == _CUT_HERE:
            return list(texts[start - length : start])
    return []


def _registers_before(texts: Sequence[str], start: int, kind: SplatKind) -> list[str]:
    """User Mode Linux shows the registers, and then says why."""
    if kind is not SplatKind.OOPS or not texts[start].startswith("Kernel panic"):
        return []
    for length in range(1, 20):
        if start - length >= 0 and texts[start - length].startswith("Modules linked in:"):
            return list(texts[start - length : start])
    return []


def _is_register_line(line: str) -> bool:
    return bool(re.match(r"Modules linked in:|Pid: |[ER]IP: |R\w\w: |R\d\d: |RSP: ", line))


def _find_end(texts: Sequence[str], start: int, kind: SplatKind) -> int:
    """The index after the last line of the report that begins at ``start``."""
    if not has_trace(kind):
        return start + 1
    far = kind is SplatKind.LOCKDEP
    in_trace = False
    connected = True
    last = start + 1
    for i in range(start + 1, min(len(texts), start + (_LOCKDEP_LINES if far else _LINES_MAX))):
        line = texts[i]
        if _ENDS.match(line):
            return i + 1
        if line == _CUT_HERE:
            if not _goes_on(texts, i, kind):
                return last
            connected = True
            continue
        if kind in RULED and _RULE.match(line):
            return i + 1
        if begins_trace(line) or (kind is SplatKind.LEAK and line.startswith("  backtrace")):
            in_trace = connected = True
        elif in_trace:
            if _is_unrelated(kind, line):
                return last
            if kind is SplatKind.LEAK and _LEAKS_COUNTED.match(line):
                return i + 1
            if not _IN_TRACE.match(line):
                if not _resumes(texts, i):
                    return last
                continue
        elif (i - start > _LINES_BEFORE_TRACE and not far) or _is_unrelated(kind, line):
            return last
        else:
            # Kept if a trace follows; if none does, as far as it looks like a report.
            looks = _IN_TRACE.match(line) or _BEFORE_TRACE.match(line)
            told = kind in RULED or (far and i - start < _LOCKDEP_HEAD)
            connected = told or (connected and bool(looks))
            if not connected and kind in _AT_ONCE:
                return last
        if connected:
            last = i + 1
    return last


def _resumes(texts: Sequence[str], position: int) -> bool:
    """Whether a trace goes on soon after a line that somebody else said in the middle of it."""
    for line in texts[position + 1 : position + 1 + _INTERLEAVED_LINES]:
        if kind_of(line) or line == _CUT_HERE or begins_trace(line):
            return False
        if line.startswith(" ") and frame_in(line):
            return True
    return False


def _goes_on(texts: Sequence[str], cut: int, kind: SplatKind) -> bool:
    """Whether what begins with "cut here" has the trace of a report that began in words."""
    following = texts[cut + 1 : cut + 3]
    if kind is SplatKind.SLAB:
        return any(_SLAB_WARNING.match(line) for line in following)
    return kind in IN_WORDS and any((kind, kind_of(line)) in _GOES_ON for line in following)


def _is_unrelated(kind: SplatKind, line: str) -> bool:
    """Whether a line begins a report of its own."""
    other = kind_of(line)
    if other is None or other in (SplatKind.REMARK, SplatKind.CHECKER_OFF):
        return False
    if kind is SplatKind.SLAB and (_SLAB_WARNING.match(line) or _SLAB_OBJECT.match(line)):
        return False
    if kind is SplatKind.BUG and line == _UML_BUG:
        return False
    if kind is SplatKind.LEAK and _LEAKS_COUNTED.match(line):
        return False
    return (kind, other) not in _GOES_ON
