"""Words of a machine that would have a terminal do things."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from smbdirect_testbed.lib.errors import CommandFailed, TestbedError
from smbdirect_testbed.lib.printable import printable
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.results.html_report import render
from smbdirect_testbed.results.results import Outcome, RunResults, ScenarioResult
from smbdirect_testbed.results.summary import print_summary
from smbdirect_testbed.results.terminal import line

# Sets the window's title; clears the screen; the same with an 8-bit introducer; back and over.
EVIL = "\x1b]0;title\x07\x1b[2J\x9b2Jgood\b\b\b\bevil\u202etxt"
_CONTROLS = ("\x1b", "\x07", "\x9b", "\b", "\u202e")


def _harmless(text: str) -> bool:
    return "\\x1b" in text and not any(control in text for control in _CONTROLS)


def test_control_characters_are_spelt() -> None:
    assert printable("a\x1b[2Jb\x7f\x00") == "a\\x1b[2Jb\\x7f\\x00"
    assert printable("tab\tline\nä\u2192") == "tab\tline\nä\u2192"
    assert printable("one\r\ntwo\rthree") == "one\ntwo\\rthree"


def test_errors() -> None:
    for error in (TestbedError(EVIL, hint=EVIL, detail=EVIL), CommandFailed([EVIL], 1, EVIL)):
        assert _harmless(str(error))
        assert _harmless(error.message)
        assert _harmless(error.detail or "")


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", said)
    Progress().say(EVIL)
    assert _harmless(said.getvalue())


def test_results(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/kernel.log").write_text(EVIL)
    bad = ScenarioResult(f"t.py::{EVIL}", Outcome.FAILED, 1, EVIL, EVIL, EVIL, directory="d")
    results = RunResults(tmp_path, ["run"], scenarios=[bad], notes=[EVIL], reason=EVIL)
    shown = io.StringIO()
    print_summary(results, keep=False, file=shown)
    assert _harmless(shown.getvalue())
    assert _harmless(line(bad).partition("::")[2] and bad.message)
    assert _harmless(render(results))
