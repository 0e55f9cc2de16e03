"""A tree of another kernel is told in one line; a mistake in it is shown."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from smbdirect_testbed.kernel.build_errors import Origin, does_not_compile, remember_fit
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError

WORK = PurePosixPath("/build/modules")
RELEASE = "7.3.4+deb13-amd64"
ERROR = "fs/smb/server/vfs.c:7:1: error: unknown type name 'renamed_since'"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMBDIRECT_TESTBED_CACHE", str(tmp_path / "cache"))


def source(tree: Path | None, version: str | None = None, release: str = RELEASE) -> Origin:
    """A driver from a tree with a version, or from none."""
    if tree and version:
        numbers = dict(zip(("VERSION", "PATCHLEVEL"), version.split("."), strict=True))
        tree.mkdir(exist_ok=True)
        text = "".join(f"{key} = {value}\n" for key, value in numbers.items())
        (tree / "Makefile").write_text(text)
    return Origin(f"{tree} (v1)", tree, release)


def failure(of: Origin) -> ProvisionError:
    output = "\n".join(["make: a page", ERROR, "make: another"])
    failed = CommandFailed(["make"], 2, output)
    return does_not_compile(of, failed, WORK, Path("/cache/logs/driver.log"))


def test_another_version_is_one_line(tmp_path: Path) -> None:
    error = failure(source(tmp_path / "linux", "7.5"))
    assert (
        error.message == f"{tmp_path}/linux is Linux 7.5: its driver does not compile for {RELEASE}"
    )
    assert error.detail is None
    assert error.hint
    assert "uml-rxe" in error.hint
    assert "/cache/logs/driver.log" in error.hint


@pytest.mark.parametrize("of", ["7.3", None, "distribution"])
def test_the_same_version_is_the_users_mistake(tmp_path: Path, of: str | None) -> None:
    tree = None if of == "distribution" else tmp_path / "linux"
    error = failure(source(tree, None if of == "distribution" else of))
    assert error.detail == ERROR
    assert error.message.endswith("does not compile")
    # Of a part of a tree nobody knows the version.
    assert ("too far" in str(error.hint)) is (of is None)


@pytest.mark.parametrize("version", ["7.5", None])
def test_what_compiled_before_is_not_too_far(tmp_path: Path, version: str | None) -> None:
    tree = source(tmp_path / "linux", version)
    remember_fit(source(tmp_path / "linux", version, "6.1.0-amd64"))
    assert "too far" in f"{failure(tree).hint}" or failure(tree).detail is None
    remember_fit(tree)
    error = failure(tree)
    assert error.detail == ERROR
    assert "too far" not in str(error.hint)


def test_a_pulled_tree_is_another(tmp_path: Path) -> None:
    remember_fit(source(tmp_path / "linux", "7.5"))
    assert failure(source(tmp_path / "linux", "7.6")).detail is None
