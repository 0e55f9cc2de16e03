"""Bugs put back, for real: the quickest of them are caught, and an edit that is no bug is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.machines.conftest import Testbed

from smbdirect_testbed.lib import paths

pytestmark = pytest.mark.vm

_NO_BUG = """\
kind = "hang"
what = "a comment"
happens = "nothing"
scenarios = "test_links_are_active"

[[edits]]
file = "fs/smb/smbdirect/main.c"
find = "MODULE_LICENSE("
put = "/* */ MODULE_LICENSE("
"""


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(paths.PROJECT))


def test_the_quickest_are_caught(testbed: Testbed) -> None:
    program = ("-m", "tests.regressions")
    done = testbed.run("run", "--quick", "--no-document", program=program)
    assert done.status == 0
    assert "without any bug, 0 red" in done.output
    assert "missed" not in done.output


def test_what_is_no_bug_is_missed(testbed: Testbed, tmp_path: Path) -> None:
    (tmp_path / "catalogue").mkdir()
    (tmp_path / "catalogue/comment.toml").write_text(_NO_BUG)
    done = testbed.run(
        *("run", "--no-document", "--no-control", "--catalogue", str(tmp_path / "catalogue")),
        program=("-m", "tests.regressions"),
    )
    assert done.status == 1
    assert "missed    comment" in done.output
    assert "caught 0 of 1" in done.output
