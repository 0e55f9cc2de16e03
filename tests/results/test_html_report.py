"""The report page."""

from __future__ import annotations

import html
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from smbdirect_testbed.results.html_report import render, write_report
from smbdirect_testbed.results.results import Outcome, RunResults, ScenarioResult, Verdict

EVIL = '<script>alert("&")</script>'


class Checker(HTMLParser):
    """Notes tags that do not close, and what would make the page depend on others."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def results(tmp_path: Path) -> RunResults:
    directory = tmp_path / "20261122-081530-rxe-3f9a"
    evidence = directory / "scenarios" / "bad 1"
    evidence.mkdir(parents=True)
    (evidence / "kernel.log").write_text(f"WARNING {EVIL}\n" * 3000 + "the last line\n")
    (evidence / "capture.pcap").write_bytes(b"\0" * 5000)
    (directory / "kernel.log").touch()
    return RunResults(
        directory,
        ["smbdirect-testbed", "run", EVIL],
        facts={"environment": "rxe", "kernel": EVIL},
        timings={"first_scenario_s": 42.0},
        notes=[EVIL],
        reason=EVIL,
        scenarios=[
            ScenarioResult("a.py::good", Outcome.PASSED, 1.0),
            ScenarioResult(
                f"b.py::bad[{EVIL}]",
                Outcome.FAILED,
                2.0,
                f"message {EVIL}",
                f"trace {EVIL}",
                f"output {EVIL}",
                directory="scenarios/bad 1",
            ),
            ScenarioResult("a.py::not[here]", Outcome.NOT_RUN, message="the machine died"),
            ScenarioResult("a.py::x", Outcome.KNOWNFAIL, message="because", suite="smb2.x"),
        ],
    )


def test_page(results: RunResults) -> None:
    write_report(results)
    page = (results.directory / "report.html").read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert set(checker.links) == {
        "kernel.log",
        "scenarios",
        "scenarios/bad%201/",
        "scenarios/bad%201/kernel.log",
        "scenarios/bad%201/capture.pcap",
    }
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 8
    assert page.index("message &lt;script") < page.index("What ran")
    assert "the last line" in page
    assert "4.9 KiB" in page or "5.0 kB" in page or "5.0 KB" in page
    assert "the machine died" in page
    quoted = f"smbdirect-testbed run {shlex.quote(EVIL)}"
    assert html.escape(quoted).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in page
    assert len(page) < 40_000


def test_page_of_a_run_that_did_nothing(tmp_path: Path) -> None:
    page = render(RunResults(tmp_path, verdict=Verdict.NOT_PROVIDED, reason="no disk space"))
    checker = Checker()
    checker.feed(page)
    assert "not provided" in page
    assert "no disk space" in page


def test_many_failures_do_not_make_the_page_endless(tmp_path: Path) -> None:
    failures = [
        ScenarioResult(f"a.py::t{i}", Outcome.FAILED, message="x" * 100_000) for i in range(500)
    ]
    page = render(RunResults(tmp_path, scenarios=failures))
    assert "400 more failed" in page
    assert len(page) < 3_000_000
