"""The file of known reports: what it may say, and which kernel an entry is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from smbdirect_testbed.kernel.splats import Splat, SplatKind
from smbdirect_testbed.lib.errors import UsageError
from smbdirect_testbed.plugin.known_splats import KnownSplats, known_file

_ENTRY = """
[[known]]
fingerprint = "WARNING:inner:*"
reason = "a reason"
upstream = "https://example.org/1"
"""


def _load(directory: Path, text: str, kernel: str = "7.3.4+deb13-amd64") -> KnownSplats:
    file = directory / "known-splats.toml"
    file.write_text(text)
    return KnownSplats.load(file, kernel)


def _splat(fingerprint: str) -> Splat:
    return Splat(SplatKind.WARNING, "WARNING: a.c:1", (), fingerprint)


def test_an_entry_is_a_pattern(tmp_path: Path) -> None:
    known = _load(tmp_path, _ENTRY)
    assert known.entry(_splat("WARNING:inner:outer"))
    assert known.entry(_splat("WARNING:outer:inner")) is None


@pytest.mark.parametrize(
    ("kernel", "concerned"),
    [
        ("7.0.9", False),
        ("7.1", True),
        ("7.3.4+deb13-amd64", True),
        ("7.4.2-testbed", True),
        ("7.4.3", False),
        ("8.0-rc1", False),
    ],
)
def test_an_entry_is_about_a_range_of_kernels(
    tmp_path: Path, kernel: str, *, concerned: bool
) -> None:
    known = _load(tmp_path, f'{_ENTRY}since = "7.1"\nuntil = "7.4.3"\n', kernel)
    assert bool(known.entries) is concerned


def test_an_entry_that_matched_nothing_is_told(tmp_path: Path) -> None:
    known = _load(tmp_path, _ENTRY)
    assert known.unmatched(["WARNING:inner:outer"]) == []
    (line,) = known.unmatched(["oops:inner:outer"])
    assert line.startswith("known-splats.toml: WARNING:inner:* was not reported")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[known]]\n", "known 1 fingerprint: Field required"),
        (_ENTRY.replace("https://", "ftp://"), "known 1 upstream"),
        (f'{_ENTRY}until = "soon"\n', "known 1 until"),
        (f"{_ENTRY}[[other]]\n" + _ENTRY.replace("[[known]]", ""), "unknown key other"),
        ("[[known]\n", "known-splats.toml"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _load(tmp_path, text)


def test_the_file_of_the_project_is_right() -> None:
    KnownSplats.load(known_file(), "7.3.4")
