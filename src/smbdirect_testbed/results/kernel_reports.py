"""What the kernel reported in a run, each mistake once, however often it was made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Weight(StrEnum):
    """What a report of the kernel means for the run."""

    FAILURE = "failure"
    KNOWN = "known"
    NOTE = "note"


@dataclass
class KernelReport:
    """One mistake that the kernel reported.

    :param fingerprint: the same whenever it is the same mistake
    :param kind: ``oops``, ``WARNING``, …
    :param title: what the kernel said, in one line
    :param scenarios: where it was reported, in order; a scenario as often as it was
    :param reason: why it is known, and where upstream tells of it
    """

    fingerprint: str
    kind: str
    title: str
    weight: Weight
    scenarios: list[str]
    reason: str = ""

    @property
    def count(self) -> int:
        """How often it was reported."""
        return len(self.scenarios)


class KernelReports:
    """The reports of a run by their fingerprints."""

    def __init__(self, reports: Iterable[KernelReport] = ()) -> None:
        self._reports: dict[str, KernelReport] = {}
        for report in reports:
            self.add(report)

    def add(self, report: KernelReport) -> None:
        """Take in a report."""
        before = self._reports.get(report.fingerprint)
        if before is None:
            self._reports[report.fingerprint] = KernelReport(
                report.fingerprint,
                report.kind,
                report.title,
                report.weight,
                list(report.scenarios),
                report.reason,
            )
        else:
            before.scenarios += report.scenarios

    def first(self, fingerprint: str) -> str:
        """The scenario in which a mistake was reported first; "" for none."""
        report = self._reports.get(fingerprint)
        return report.scenarios[0] if report and report.scenarios else ""

    def excuse(self, fingerprint: str, reason: str) -> None:
        """A report was expected where it was made."""
        report = self._reports[fingerprint]
        report.weight, report.reason = Weight.KNOWN, reason

    def all(self) -> list[KernelReport]:
        """All of them: failures first, then what is known, then what is worth a note."""
        order = list(Weight)
        return sorted(self._reports.values(), key=lambda r: order.index(r.weight))

    def as_json(self) -> list[dict[str, object]]:
        """For ``run.json``."""
        return [
            {
                "fingerprint": r.fingerprint,
                "kind": r.kind,
                "title": r.title,
                "weight": r.weight.value,
                "count": r.count,
                "scenarios": list(dict.fromkeys(r.scenarios)),
                "reason": r.reason,
            }
            for r in self.all()
        ]
