"""Where the memory of a User Mode Linux can be, tried on real mounts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smbdirect_testbed.carriers.uml.memory_place import memory_place
from smbdirect_testbed.lib.errors import ProvisionError


def test_the_first_fit_place_is_taken(tmp_path: Path) -> None:
    assert memory_place(1, [tmp_path / "absent", tmp_path, Path("/")]) == tmp_path


def test_each_unfit_place_is_named_with_its_reason(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with pytest.raises(ProvisionError) as raised:
        memory_place(1 << 40, [absent, tmp_path])
    assert f"{absent} is not there, {tmp_path} has " in raised.value.message
    assert raised.value.message.endswith(" MiB free")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("size=4m", "None"),
        ("size=4m,noexec", "is mounted noexec"),
        ("size=1m", "has 1 MiB free"),
        ("size=4m,ro", "cannot be written to (Read-only file system)"),
    ],
)
def test_mounts(tmp_path: Path, options: str, expected: str) -> None:
    """In a mount namespace of its own, as root there."""
    program = (
        "import sys; from pathlib import Path;"
        " from smbdirect_testbed.carriers.uml.memory_place import unfit;"
        " print(unfit(Path(sys.argv[1]), 1))"
    )
    mount = 'mount -t tmpfs -o "$1" none "$0" && shift && exec "$@"'
    own = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",))]
    python = [sys.executable, "-c", program, str(tmp_path)]
    argv = [*own, "sh", "-ec", mount, str(tmp_path), options, *python]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == expected
