"""The documents name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from smbdirect_testbed.lib import paths

DOCUMENTS = sorted([paths.PROJECT / "README.md", *(paths.PROJECT / "docs").rglob("*.md")])
_PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|md))(?:::\w+)?`")
_OURS = {p.name for p in paths.PROJECT.iterdir()} | {p.name for p in paths.PACKAGE.iterdir()}
_MADE_LATER = {"results"}


def missing(document: Path) -> list[str]:
    """The paths of this project that a document names and that do not exist."""
    named = {found[1] for found in _PATH.finditer(document.read_text())}
    roots = (paths.PROJECT, paths.PACKAGE, document.parent)
    return sorted(
        name
        for name in named
        if (name.partition("/")[0] in _OURS - _MADE_LATER or "/" not in name)
        and not any((root / name).exists() for root in roots)
        and not ("/" not in name and any(paths.PROJECT.glob(f"[!.]*/**/{name}")))
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_named_files_exist(document: Path) -> None:
    assert missing(document) == []


def test_a_file_that_does_not_exist_is_found(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_text("`lib/wait.py`, `lib/together.py`, `docs/no.md`, `nowhere.py`, `fs/smb`\n")
    assert missing(document) == ["docs/no.md", "lib/together.py", "nowhere.py"]
