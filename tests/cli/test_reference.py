"""docs/scenarios.md says what the code says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smbdirect_testbed import scenario
from smbdirect_testbed.cli import reference
from smbdirect_testbed.cli.reference import DOCUMENT, Entry, updated
from smbdirect_testbed.plugin import markers


def test_the_document_is_what_the_code_says() -> None:
    text = DOCUMENT.read_text()
    assert updated(text) == text, "run python -m smbdirect_testbed.cli.reference"


def test_it_has_everything() -> None:
    text = DOCUMENT.read_text()
    for name in scenario.__all__:
        assert f"**`{name}`**: " in text
    for name in ("environment", "smbd", "smbclient", "torture"):
        assert f"\n| `{name}` | " in text
    for marker in markers.MARKERS:
        assert f"\n| `{marker.signature}` | " in text
    for old in markers.OLD_NAMES:
        assert f"its old name is `{old}`" in text
    assert "_provenance" not in text


def test_a_stale_document_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = replace(markers.MARKERS[0], meaning="something else")
    monkeypatch.setattr(reference, "MARKERS", (changed, *markers.MARKERS[1:]))
    text = DOCUMENT.read_text()
    assert "something else" in updated(text) != text


def test_what_is_around_the_tables_stays() -> None:
    text = DOCUMENT.read_text()
    assert updated(f"before\n{text}after\n") == f"before\n{text}after\n"
    with pytest.raises(ValueError, match="no part <!-- generated: fixtures"):
        updated(text.replace("generated: fixtures", "made: fixtures"))


@pytest.mark.parametrize("text", ["", "One line.", "One line::\n\n", "One line::\n\ntext"])
def test_without_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="thing has no summary and example"):
        Entry.of("thing", text)


def test_an_entry() -> None:
    text = (
        "Summary of ``this``\nin :class:`two` lines.\n\n::\n\n    if a:\n        b\n\n:param c: d"
    )
    entry = Entry("x", "Summary of `this` in `two` lines.", "if a:\n    b")
    assert Entry.of("x", text) == entry
    assert Entry.of("x", "Summary::\n\n    a\n\n    b") == Entry("x", "Summary.", "a\n\nb")
