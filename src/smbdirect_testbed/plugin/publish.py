"""The end of a run: its results are written, and shown to the user."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from smbdirect_testbed.lib.version import own_version
from smbdirect_testbed.plugin.known_splats import KnownSplats, known_file
from smbdirect_testbed.plugin.usual_seconds import remember_seconds
from smbdirect_testbed.results import record, results
from smbdirect_testbed.results.kernel_reports import KernelReports
from smbdirect_testbed.results.record import shares
from smbdirect_testbed.results.results import RunResults, ScenarioResult, Verdict

JUNIT = "junit.xml"

_GRAVEST = (Verdict.INTERRUPTED, Verdict.NOT_PROVIDED)


def publish(found: RunResults, *, keep: bool) -> None:
    """Write ``run.json`` and ``report.html``, point ``latest`` at them, and print the summary.

    :param keep: whether the environment stays up, for the closing lines
    """
    from smbdirect_testbed.results.summary import print_summary

    found.facts = {"testbed": own_version(), **found.facts}
    found.notes += _unmatched(found)
    results.write_run_json(found)
    _write_report(found)
    results.point_latest(found.directory)
    if found.facts.get("carrier"):
        remember_seconds(found.facts["carrier"], found.scenarios)
    record.forget(found.directory)
    print_summary(found, keep=keep)


def publish_killed(directory: Path) -> Path | None:
    """Write the results of a run that was killed; the path of its report, if there was a record."""
    reason = "the run was killed"
    parts = [found for p in shares(directory) if (found := record.recorded(p, reason))]
    found = merged(directory, parts, parts[0].seconds) if parts else None
    found = found or record.recorded(directory, reason)
    if found is None:
        return None
    results.write_run_json(found)
    _write_report(found)
    results.point_latest(directory)
    record.forget(directory)
    return directory / "report.html"


def _write_report(found: RunResults) -> None:
    # Templates and tables are no concern of a run that begins: they are imported at its end.
    from smbdirect_testbed.results.html_report import write_report

    write_report(found)


def _unmatched(found: RunResults) -> list[str]:
    """Lines about known reports of the kernel that it did not make."""
    if found.verdict not in (Verdict.PASSED, Verdict.FAILED):
        return []
    known = KnownSplats.load(known_file(), found.facts.get("kernel", ""))
    return known.unmatched([r.fingerprint for r in found.kernel_reports.all()])


def merged(directory: Path, parts: Sequence[RunResults], seconds: float) -> RunResults:
    """The results of a run in parts, whose directories are below its own.

    :param seconds: from the typed command to the end
    """
    scenarios = []
    for part in parts:
        below = part.directory.relative_to(directory)
        for scenario in part.scenarios:
            moved = f"{below}/{scenario.directory}" if scenario.directory else ""
            scenarios.append(dataclasses.replace(scenario, directory=moved))
    scenarios = _once(scenarios)
    scenarios.sort(key=lambda s: s.file)
    graves = [p for verdict in _GRAVEST for p in parts if p.verdict is verdict]
    verdict, reason = results.judge(scenarios)
    if graves:
        verdict, reason = graves[0].verdict, graves[0].reason
    elif crashed := [p for p in parts if p.reason.startswith("error of the testbed")]:
        verdict, reason = Verdict.FAILED, crashed[0].reason
    timings: dict[str, float] = {}
    for part in parts:
        for name, value in part.timings.items():
            soonest = name == "first_scenario_s" and name in timings
            timings[name] = (min if soonest else max)(value, timings.get(name, value))
    _merge_junit(directory, parts)
    return RunResults(
        directory,
        command=parts[0].command,
        started=min(p.started for p in parts),
        seconds=seconds,
        facts={**parts[0].facts, "environments_at_once": str(len(parts))},
        scenarios=scenarios,
        timings=timings,
        kernel_reports=KernelReports(r for part in parts for r in part.kernel_reports.all()),
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
        verdict=verdict,
        reason=reason,
    )


def _once(scenarios: Sequence[ScenarioResult]) -> list[ScenarioResult]:
    """The scenarios; what several parts say of their environments in the same words, only once.

    Their details differ by the time and by process numbers.
    """
    found = {(s.id, s.outcome, s.summary): s for s in reversed(scenarios)}
    return list(reversed(found.values()))


def _merge_junit(directory: Path, parts: Sequence[RunResults]) -> None:
    suites = ET.Element("testsuites")
    for part in parts:
        file = part.directory / JUNIT
        if file.exists():
            suites.extend(ET.parse(file).getroot().findall("testsuite"))
    ET.ElementTree(suites).write(directory / JUNIT, encoding="utf-8", xml_declaration=True)
