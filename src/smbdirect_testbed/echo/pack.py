"""Packs the suite into one file that any Python 3.11 runs."""

from __future__ import annotations

import shutil
import tempfile
import zipapp
from pathlib import Path

_MAIN = "import sys\nfrom smbdirect_testbed.echo.main import main\nsys.exit(main())\n"
_NOT_PACKED = ("cli.py", "pack.py")


def pack(file: Path) -> None:
    """Write the echo suite's program to one file that any Python 3.11 runs.

    ::

        pack_echo(client.machine.shared.here / "echo.pyz")
        client.run(["python3", "-I", f"{client.machine.shared.there}/echo.pyz", "--help"])

    :raises OSError: the file cannot be written
    """
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        package = root / "smbdirect_testbed"
        shutil.copytree(
            here, package / here.name, ignore=shutil.ignore_patterns("__pycache__", *_NOT_PACKED)
        )
        shutil.copy(here.parent / "smbdirect.py", package)
        shutil.copy(here.parent / "__init__.py", package)
        (root / "__main__.py").write_text(_MAIN)
        zipapp.create_archive(root, file, interpreter="/usr/bin/env python3", compressed=True)
