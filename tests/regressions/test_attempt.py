"""What counts as caught, and what the document says of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.regressions import attempt as module
from tests.regressions import table
from tests.regressions.attempt import Attempt, Run, Verdict
from tests.regressions.bug import Bug, Edit, Kind, Which

from smbdirect_testbed.lib.progress import Progress

BUG = Bug("broken", Kind.HANG, "it | breaks", "so", (Edit("f.c", "a", "b"),), "test_socket")
MISSED = Bug("missed", Kind.DATA, "it lies", "so", (Edit("f.c", "a", "c"),), "test_socket")


def _attempt(monkeypatch: pytest.MonkeyPatch, run: Run, innocent: dict[str, str]) -> Attempt:
    options: list[str] = []

    @contextmanager
    def source(*_: object) -> Iterator[Path]:
        yield Path("tree")

    def fake(_: Path, environment: str, expression: str, *given: str) -> Run:
        assert (environment, expression) == (BUG.environment, BUG.expression)
        options.extend(given)
        return run

    monkeypatch.setattr(module, "source_with", source)
    monkeypatch.setattr(module, "run", fake)
    done = module.attempt(BUG, innocent, Progress(quiet=True))
    assert options[:2] == ["--maxfail", str(len(innocent) + 1)]
    return done


def test_caught_by_what_is_green_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(3.0, {"f::anyway": "always", "f::it": "a hang"})
    done = _attempt(monkeypatch, run, {"f::anyway": "always"})
    assert (done.verdict, done.scenario, done.says) == (Verdict.CAUGHT, "f::it", "a hang")


def test_missed_if_only_that_is_red_which_is_red_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    done = _attempt(monkeypatch, Run(3.0, {"f::anyway": "always"}), {"f::anyway": "always"})
    assert done.verdict is Verdict.MISSED
    assert _attempt(monkeypatch, Run(3.0, {}), {}).verdict is Verdict.MISSED


def test_not_tried_if_it_does_not_build(monkeypatch: pytest.MonkeyPatch) -> None:
    done = _attempt(monkeypatch, Run(3.0, {}, "error: f.c:3: no"), {})
    assert (done.verdict, done.says) == (Verdict.NOT_TRIED, "error: f.c:3: no")


@pytest.mark.parametrize(
    ("status", "scenarios", "red", "trouble"),
    [
        (1, [("f::a", "passed", ""), ("f::b", "failed", "one\ntwo")], {"f::b": "one"}, ""),
        (0, [("f::a", "passed", "")], {}, ""),
        # Whoever skips all has not looked.
        (1, [("f::a", "skipped", "")], {}, "nothing ran: why"),
        (1, [("f::a", "failed", "one")], {"f::a": "one"}, ""),
        (3, None, {}, "error: cannot build"),
    ],
)
def test_a_run_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    scenarios: list[tuple[str, str, str]] | None,
    red: dict[str, str],
    trouble: str,
) -> None:
    """With a stand-in for the command line."""
    record: dict[str, Any] = {"reason": "why", "counts": {"passed": 0}, "scenarios": []}
    for id, outcome, message in scenarios or ():
        record["scenarios"].append({"id": id, "outcome": outcome, "message": message})
        record["counts"]["passed"] += outcome == "passed"
    program = tmp_path / "program"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, sys\n"
        "assert sys.argv[3:] == "
        "['run', 'uml-rxe', '--driver', 'tree', '-k', 'test_a', '-x'], sys.argv\n"
        "latest = pathlib.Path(os.environ['SMBDIRECT_TESTBED_RESULTS']) / 'latest'\n"
        "latest.mkdir()\n"
        f"(latest / 'run.json').write_text({json.dumps(record)!r})\n"
        "print('error: cannot build\\nhint: read this', file=sys.stderr)\n"
        f"sys.exit({status})\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    done = module.run(Path("tree"), "uml-rxe", "test_a", "-x")
    assert (done.red, done.trouble) == (red, trouble)


def test_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(table, "DOCUMENT", tmp_path / "regressions.md")
    caught = Attempt(BUG, Verdict.CAUGHT, 7.26, "scenarios/test_a.py::test_a", "x" * 200)
    table.record([caught], [BUG, MISSED])
    table.record([Attempt(MISSED, Verdict.MISSED, 9.0)], [BUG, MISSED])
    text = (tmp_path / "regressions.md").read_text()
    assert "Of 2 bugs, the scenarios of an ordinary run catch **1**" in text
    assert "**1** are missed, and 0 were not tried" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows[0].startswith("| `broken`: it \\| breaks | hang |  | so | `test_a` | uml-rxe | 7 |")
    assert rows[0].endswith(f"{'x' * 107}... |")
    assert "| **missed** | uml-rxe | 9 |  |" in rows[1]


def test_the_document_is_the_one_made_from_the_results() -> None:
    from tests.regressions.bug import catalogue

    assert table.DOCUMENT.read_text() == table.document(list(catalogue()), table.read_results())


def test_a_bug_that_is_no_more_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(table, "DOCUMENT", tmp_path / "regressions.md")
    table.record([Attempt(BUG, Verdict.MISSED)], [BUG])
    table.record([Attempt(MISSED, Verdict.MISSED)], [MISSED])
    assert list(table.read_results()) == ["missed"]


def test_default_and_thorough_are_counted_apart() -> None:
    thorough = Bug("t", Kind.DATA, "a", "b", BUG.edits, "test_a", which=Which.THOROUGH)
    rows = {"t": table.Row(Verdict.CAUGHT, 1.0, "test_a", "")}
    text = table.document([thorough], rows)
    assert "an ordinary run catch **0**" in text
    assert "thorough ones **1** more" in text
    assert "`test_a` (thorough)" in text
