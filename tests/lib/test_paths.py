"""Where things lie, and whether they can."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import ProvisionError


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE", "RESULTS"):
        monkeypatch.setenv(f"SMBDIRECT_TESTBED_{name}", str(tmp_path / "not" / "yet" / name))


def test_directories_that_are_still_to_be_made(tmp_path: Path) -> None:
    paths.require_writable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["STATE", "RESULTS"])
def test_a_directory_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    variable = f"SMBDIRECT_TESTBED_{name}"
    monkeypatch.setenv(variable, "/proc/version/x")
    with pytest.raises(ProvisionError, match="/proc/version/x cannot be written to") as raised:
        paths.require_writable()
    assert raised.value.hint == f"set {variable} to a directory that can"


def test_a_read_only_mount_is_one_line(tmp_path: Path) -> None:
    """Root may write wherever permissions are, but not there."""
    mount = 'mount -t tmpfs -o ro none "$0" && SMBDIRECT_TESTBED_STATE="$0/x" exec "$@"'
    cli = [sys.executable, "-m", "smbdirect_testbed", "run", "rxe", "-k", "rping"]
    argv = ["unshare", "--map-root-user", "--mount", "sh", "-ec", mount, str(tmp_path), *cli]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-2:] == [
        f"smbdirect-testbed: {tmp_path}/x cannot be written to",
        "  set SMBDIRECT_TESTBED_STATE to a directory that can",
    ]
