"""Evidence of what happened in a scenario: kernel log, capture, counters, logs of servers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from smbdirect_testbed.evidence.capture import (
    Moment,
    Wire,
    WireCapture,
    as_json,
    captured_host,
    capturing,
)
from smbdirect_testbed.kernel.source_lines import SourceLines
from smbdirect_testbed.kernel.splats import Splat, SplatKind, Verdict, find_splats
from smbdirect_testbed.lib.errors import MachineDied, ProvisionError
from smbdirect_testbed.machine.kernel_log import BEGINNING, Mark
from smbdirect_testbed.plugin.core_dumps import collect_cores
from smbdirect_testbed.plugin.known_splats import KnownSplats, known_file
from smbdirect_testbed.plugin.server_logs import ServerLogs
from smbdirect_testbed.results.kernel_reports import KernelReport, KernelReports, Weight

if TYPE_CHECKING:
    from smbdirect_testbed.environment.environment import Environment

_LONGEST_TRACE = 80
"""Lines of one report of the kernel in a message; all of it is in the scenario's kernel.log."""

_PLACES = 8
"""Places in the source, of one report in a message."""


@dataclass(frozen=True)
class _Border:
    """A point between two scenarios.

    :param marks: in the kernel log of each machine
    :param wire: missing when nothing is captured
    """

    marks: Mapping[str, Mark]
    wire: Moment | None


class Evidence:
    """The kernel log and the wire, divided at the borders between scenarios.

    :param directory: the run's results directory
    :param notes: takes lines about what could not be watched
    :param reports: takes what the kernels report
    """

    def __init__(
        self,
        environment: Environment,
        directory: Path,
        notes: list[str],
        reports: KernelReports,
    ) -> None:
        self._environment = environment
        self._directory = directory
        self._notes = notes
        self._stack = ExitStack()
        self._pool = ThreadPoolExecutor(1)
        self._capture: WireCapture | None = None
        self._logs = environment.kernel_logs
        self._border = _Border(dict.fromkeys(self._logs, BEGINNING), None)
        self._told: set[tuple[str, int]] = set()
        self._reports = reports
        self._known = KnownSplats.load(known_file(), environment.facts().get("kernel", ""))
        self._scenario = "environment::provide"
        self._source = SourceLines(environment.driver.built.files_with_lines)
        self._wire: Wire | None = None
        self._server_logs = ServerLogs()
        self.crashes: list[str] = []
        """What crashed before the last border, by servers' logs and by core dumps."""

    def __enter__(self) -> Self:
        self._stack.callback(self._pool.shutdown)
        env = self._environment
        if client := captured_host(env.hosts):
            log = self._directory / "tcpdump.log"
            self._capture = self._stack.enter_context(capturing(client, env.hosts, log))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server_logs.keep(self._directory)
        self._stack.close()
        if self._capture and (lost := self._capture.lost()):
            self._notes.append(f"the capture lacks {lost} packets: tcpdump was too slow")

    def death(self) -> str | None:
        """Why a machine no longer runs; None while all do."""
        return self._environment.death()

    @property
    def last_marks(self) -> Mapping[str, Mark]:
        """The last border in each machine's kernel log."""
        return self._border.marks

    def begin(self, scenario: str) -> None:
        """A scenario begins; what was found until now belongs to another."""
        self._scenario = scenario
        self._wire = None

    def wire(self) -> Wire | None:
        """The wire during this scenario; None when nothing is captured."""
        if self._wire is None and self._capture and self._border.wire:
            self._wire = Wire(self._capture, self._border.wire)
        return self._wire

    def glance(self) -> list[Splat]:
        """New failures that the kernel has reported since the scenario began.

        This costs nothing as long as there are none.
        """
        found = []
        for name, log in self._logs.items():
            mark = self._border.marks[name]
            if self._new(name, mark, look=True):
                log.mark("after a report of the kernel")  # by then all of it has been said
                found += self._new(name, mark)
        return found

    def border(self, label: str, directory: Path) -> list[Splat]:
        """Divide here, and leave what there is of the last part in a directory.

        :param label: what ends here, for people who read the kernel log
        :returns: failures that the kernel reported and that were not returned before
        """
        wire: Future[Moment | None] = self._pool.submit(self._moment)
        marks = {name: log.mark(label) for name, log in self._logs.items()}
        moment = wire.result()
        splats = []
        for name, log in self._logs.items():
            text = log.between(self._border.marks[name], marks[name])
            splats += self._new(name, self._border.marks[name], marks[name])
            if text.strip():
                _write(directory / log_name(name, self._logs), text)
        if self._capture:
            directory.mkdir(parents=True, exist_ok=True)
            self._capture.cut(directory / "capture.pcap")
            self._write_counters(directory, moment)
        told = self._server_logs.cut(self._environment.servers(), directory)
        self.crashes = [f"a server crashed: {crash}" for crash in told]
        self.crashes += collect_cores(self._environment.machines.values(), directory)
        _remove_if_empty(directory)
        self._border = _Border(marks, moment)
        return splats

    def last_words(self, directory: Path) -> list[Splat]:
        """What a machine that died just after the last border said before it did.

        It is added to what that border left in its directory.

        :returns: failures that the kernel reported there
        """
        marks = {name: log.mark("death") for name, log in self._logs.items()}
        splats = []
        for name, log in self._logs.items():
            text = log.between(self._border.marks[name], marks[name])
            splats += self._new(name, self._border.marks[name], marks[name])
            if text.strip():
                _write(directory / log_name(name, self._logs), text, "a")
        self._border = _Border(marks, self._border.wire)
        return splats

    def late(self, text: str) -> list[Splat]:
        """Failures in what a machine said after the last border, at its end."""
        self._scenario = "environment::teardown"
        splats = find_splats(text)
        for splat in splats:
            self._record(splat)
        return [s for s in splats if s.fails and not self._known.entry(s)]

    def _new(
        self, machine: str, start: Mark, end: Mark | None = None, *, look: bool = False
    ) -> list[Splat]:
        """Failures that began in a part of a machine's log, without those returned before.

        :param look: do not count them as returned
        """
        found = self._logs[machine].splats(start, end)
        new = [f for f in found if (machine, f.position) not in self._told]
        if not look:
            self._told |= {(machine, f.position) for f in new}
            for f in new:
                self._record(f.splat)
        return [f.splat for f in new if f.splat.fails and not self._known.entry(f.splat)]

    def _record(self, splat: Splat) -> None:
        """Take a report into the results; one that fails nothing is told, too, once in a run."""
        known = self._known.entry(splat)
        if splat.kind.verdict is Verdict.NOTHING:
            return
        weight = Weight.KNOWN if known else Weight.FAILURE if splat.fails else Weight.NOTE
        reason = f"{known.reason} ({known.upstream})" if known else ""
        if weight is not Weight.FAILURE and not self._reports.first(splat.fingerprint):
            self._notes.append(f"kernel {splat.kind}, {reason or 'no failure'}: {splat.title}")
        report = KernelReport(
            *(splat.fingerprint, splat.kind, splat.title, weight, [self._scenario], reason)
        )
        self._reports.add(report)

    def excuse(self, splats: Iterable[Splat], reason: str) -> None:
        """Reports were expected where they were made: by a scenario's mark."""
        for splat in splats:
            self._reports.excuse(splat.fingerprint, reason)

    def describe(self, splats: Sequence[Splat]) -> str:
        """A message about reports of the kernel in this scenario; see :func:`describe`."""
        return describe(splats, self._elsewhere(splats), self._source)

    def describe_death(self, reason: str, splats: Sequence[Splat]) -> str:
        """A message about a machine that died: the panic's line, and the traces before it."""
        return f"machine died: {reason}\n\n{self.describe(splats)}".rstrip()

    def _elsewhere(self, splats: Iterable[Splat]) -> dict[str, str]:
        """By fingerprint, the earlier scenario in which the same was reported first."""
        first = {s.fingerprint: self._reports.first(s.fingerprint) for s in splats}
        return {f: scenario for f, scenario in first.items() if scenario != self._scenario}

    def _moment(self) -> Moment | None:
        if not self._capture or self.death():
            return None
        try:
            return self._capture.moment()
        except MachineDied:
            return None
        except ProvisionError as e:
            self._notes.append(f"the capture lost its place: {e.message}")
            return None

    def _write_counters(self, directory: Path, end: Moment | None) -> None:
        proofs = self._wire.proofs if self._wire else []
        begin = self._border.wire
        if not (begin and end):
            return
        seen, growth = end.traffic - begin.traffic, end.counters.since(begin.counters)
        if not seen and not proofs:
            return
        document = {
            "captured": as_json(seen),
            "rdma_port_counters": growth.rdma,
            "tcp_segments_sent": growth.tcp_sent,
            "proofs": proofs,
        }
        _write(directory / "counters.json", json.dumps(document, indent=1) + "\n")


def log_name(machine: str, all_machines: Collection[str]) -> str:
    """The file for a machine's kernel log: ``kernel.log`` when there is one machine."""
    return "kernel.log" if len(all_machines) == 1 else f"kernel-{machine}.log"


def describe(
    splats: Sequence[Splat],
    elsewhere: Mapping[str, str] | None = None,
    source: SourceLines | None = None,
) -> str:
    """A message about reports of the kernel: the first line says it all.

    :param elsewhere: by fingerprint, where the same was reported before: its trace is there
    :param source: knows the lines of the driver's source
    """
    lines: list[str] = []
    times = Counter(s.fingerprint for s in splats)
    for splat in {s.fingerprint: s for s in reversed(splats)}.values():
        told = _told(splat, times[splat.fingerprint], elsewhere or {}, source)
        lines[:0] = [*told, ""]
    return "\n".join(lines).rstrip()


def _told(
    splat: Splat, times: int, elsewhere: Mapping[str, str], source: SourceLines | None
) -> list[str]:
    """One report; a mistake that was made several times is told once."""
    lines = [_headline(splat) + (f" ({times} times)" if times > 1 else "")]
    lines.append(f"fingerprint: {splat.fingerprint}")
    if first := elsewhere.get(splat.fingerprint):
        return [*lines, f"the same as in {first}, where the trace is"]
    lines += _places(splat, source) if source else []
    lines += splat.trace[:_LONGEST_TRACE]
    if len(splat.trace) > _LONGEST_TRACE:
        lines.append(f"[... {len(splat.trace) - _LONGEST_TRACE} more lines in kernel.log ...]")
    return lines


def _places(splat: Splat, source: SourceLines) -> list[str]:
    """Where in the driver's source that was, from the innermost function."""
    known = {frame.base: line for frame in splat.frames if (line := source.of(frame))}
    return [f"{function}() is at {line}" for function, line in list(known.items())[:_PLACES]]


def _headline(splat: Splat) -> str:
    if splat.kind is SplatKind.PANIC:
        return splat.title
    return f"kernel {splat.kind}: {splat.title}"


def _write(path: Path, text: str, mode: Literal["w", "a"] = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode, errors="replace") as file:
        file.write(text)


def _remove_if_empty(directory: Path) -> None:
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()
