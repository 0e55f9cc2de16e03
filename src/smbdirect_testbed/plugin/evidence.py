"""Evidence of what happened in a scenario: kernel log, capture, counters, logs of servers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
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
from smbdirect_testbed.lib.errors import MachineDied, ProvisionError
from smbdirect_testbed.machine.kernel_log import BEGINNING, Mark, Splat, SplatKind, find_splats
from smbdirect_testbed.plugin.server_logs import ServerLogs

if TYPE_CHECKING:
    from smbdirect_testbed.environment.environment import Environment

_LONGEST_TRACE = 80
"""Lines of one report of the kernel in a message; all of it is in the scenario's kernel.log."""


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
    """

    def __init__(self, environment: Environment, directory: Path, notes: list[str]) -> None:
        self._environment = environment
        self._directory = directory
        self._notes = notes
        self._stack = ExitStack()
        self._pool = ThreadPoolExecutor(1)
        self._capture: WireCapture | None = None
        self._logs = environment.kernel_logs
        self._border = _Border(dict.fromkeys(self._logs, BEGINNING), None)
        self._seen = Counter[str]()
        self._wire: Wire | None = None
        self._server_logs = ServerLogs()
        self.crashes: list[str] = []
        """What servers' logs told of crashes before the last border."""

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

    def begin(self) -> None:
        """A scenario begins; what was found until now belongs to another."""
        self._seen.clear()
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
            if self._new(name, log.between(mark), look=True):
                log.mark("after a report of the kernel")  # by then all of it has been said
                found += self._new(name, log.between(mark))
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
            splats += self._new(name, text)
            if text.strip():
                _write(directory / log_name(name, self._logs), text)
        if self._capture:
            directory.mkdir(parents=True, exist_ok=True)
            self._capture.cut(directory / "capture.pcap")
            self._write_counters(directory, moment)
        self.crashes = self._server_logs.cut(self._environment.servers(), directory)
        _remove_if_empty(directory)
        self._border = _Border(marks, moment)
        return splats

    def last_words(self, directory: Path) -> list[Splat]:
        """What a machine that died just after the last border said before it did.

        It is added to what that border left in its directory.

        :returns: failures that the kernel reported there
        """
        self._seen.clear()
        marks = {name: log.mark("death") for name, log in self._logs.items()}
        splats = []
        for name, log in self._logs.items():
            text = log.between(self._border.marks[name], marks[name])
            splats += self._new(name, text)
            if text.strip():
                _write(directory / log_name(name, self._logs), text, "a")
        self._border = _Border(marks, self._border.wire)
        return splats

    def _new(self, machine: str, text: str, *, look: bool = False) -> list[Splat]:
        """Failures in a machine's log since the border, without those returned before.

        :param look: do not count them as returned
        """
        splats = [s for s in find_splats(text) if s.fails]
        new = splats[self._seen[machine] :]
        if not look:
            self._seen[machine] = max(self._seen[machine], len(splats))
        return new

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


def describe(splats: list[Splat]) -> str:
    """A message about reports of the kernel: the first line says it all."""
    lines: list[str] = []
    for splat in splats:
        lines.append(_headline(splat))
        lines += splat.trace[:_LONGEST_TRACE]
        if len(splat.trace) > _LONGEST_TRACE:
            lines.append(f"[... {len(splat.trace) - _LONGEST_TRACE} more lines in kernel.log ...]")
        lines.append("")
    return "\n".join(lines).rstrip()


def _headline(splat: Splat) -> str:
    if splat.kind is SplatKind.PANIC:
        return splat.title
    return f"kernel {splat.kind}: {splat.title}"


def describe_death(reason: str, splats: list[Splat]) -> str:
    """A message about a machine that died: the panic's line, and the traces before it."""
    return f"machine died: {reason}\n\n{describe(splats)}".rstrip()


def _write(path: Path, text: str, mode: Literal["w", "a"] = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode, errors="replace") as file:
        file.write(text)


def _remove_if_empty(directory: Path) -> None:
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()
