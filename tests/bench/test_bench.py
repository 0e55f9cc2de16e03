"""The benchmark's command line: one row that fails takes no other with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from smbdirect_testbed.bench import rows
from smbdirect_testbed.bench.cli import bench
from smbdirect_testbed.bench.measure import Figure
from smbdirect_testbed.lib.errors import ProvisionError


def test_a_row_that_fails_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: rows.Settings) -> Iterator[Figure]:
        raise ProvisionError("no machine")
        yield

    def works(_: rows.Settings) -> Iterator[Figure]:
        yield Figure("works", "something", "s", 2.0, (1.0, 1.5, 3.0))

    monkeypatch.setattr(rows, "ROWS", {"fails": fails, "works": works})
    monkeypatch.setenv("SMBDIRECT_TESTBED_RESULTS", str(tmp_path))
    done = CliRunner().invoke(bench, ["--carrier", "uml"])
    assert isinstance(done.exception, ProvisionError)
    assert str(done.exception) == "not measured: fails: no machine"
    assert "something" in done.output
    assert list(tmp_path.glob("bench-*/bench.json"))
