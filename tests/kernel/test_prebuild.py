"""What is made beside the image: begun only when there is no image, ended with us."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel import prebuild
from smbdirect_testbed.kernel.prebuild import Ahead
from smbdirect_testbed.lib.progress import Progress

TRIXIE = read_recipe("trixie")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that were begun, each of them a stand-in that lasts for ever."""
    commands: list[list[str]] = []
    begin = subprocess.Popen

    def stand_in(argv: list[str], **options: object) -> subprocess.Popen[bytes]:
        commands.append(argv)
        return begin([sys.executable, "-c", "import time; time.sleep(600)"], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setenv("SMBDIRECT_TESTBED_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "Popen", stand_in)
    return commands


Children = Callable[[], list[psutil.Process]]


@pytest.fixture
def children() -> Children:
    """This process's children, but for those of other tests: a container engine, for one."""
    before = psutil.Process().children(recursive=True)
    return lambda: [p for p in psutil.Process().children(recursive=True) if p not in before]


def test_nothing_is_begun_when_there_is_an_image(
    begun: list[list[str]], children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prebuild, "find_image", lambda recipe: object())
    with prebuild.made_ahead(TRIXIE, Ahead.UML_KERNEL, Progress(quiet=True)):
        assert not children()
    assert begun == []


@pytest.mark.parametrize("what", list(Ahead))
def test_it_ends_with_whoever_made_it_begin(
    begun: list[list[str]], children: Children, what: Ahead
) -> None:
    def interrupted() -> None:
        with prebuild.made_ahead(TRIXIE, what, Progress(quiet=True), "debug"):
            assert len(children()) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not children()
    assert begun[0][-5:-1] == ["smbdirect_testbed.kernel.prebuild", "trixie", what.value, "debug"]
