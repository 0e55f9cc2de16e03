"""What `.ci/setup` installs."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest

from smbdirect_testbed.lib import paths

_WHERE = "import smbdirect_testbed as t; print(ascii(t.__file__.encode('utf8', 'surrogateescape')))"


@pytest.mark.parametrize("locale", ["C", "xx_XX.UTF-8"])
def test_starts_from_a_path_that_is_not_ascii(tmp_path: Path, locale: str) -> None:
    project = tmp_path / "ümlaut"
    project.symlink_to(paths.PROJECT)
    done = subprocess.run(
        [project / ".venv/bin/python", "-c", _WHERE],
        env={**os.environ, "LC_ALL": locale},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Found below the link: so the installed path was relative, and was read with the link in it.
    assert str(project).encode() in ast.literal_eval(done.stdout)
