"""The loop of somebody who works on the driver, at a terminal: save, see, mend, Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.helpers.terminal import command_at_terminal
from tests.machines.conftest import Testbed

from smbdirect_testbed.config.spec import DriverSpec
from smbdirect_testbed.image.image import provide_image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel.driver_source import resolve
from smbdirect_testbed.lib.errors import ExitStatus
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.run.runner import default_environment

pytestmark = pytest.mark.vm

_WAITING = "waiting for a save; Ctrl-C ends"


def test_save_see_mend_and_leave(testbed: Testbed, tmp_path: Path) -> None:
    tree = tmp_path / "linux"
    progress = Progress(quiet=True)
    resolve(DriverSpec(), provide_image(read_recipe("trixie"), progress), progress).write(tree)
    source = tree / "fs/smb/smbdirect/socket.c"
    good = source.read_text()
    results = testbed.directory / "results"

    what = (default_environment(), "--driver", str(tree), "-k", "loaded_from_our_build")
    with command_at_terminal(
        "watch", *what, directory=testbed.directory, environment=testbed.environment
    ) as terminal:
        assert "passed: 1 of 1" in terminal.until(_WAITING)

        source.write_text(good + "\nint broken(void)\n{\n\treturn undeclared;\n}\n")
        broken = terminal.until(_WAITING)
        assert f"saved: {source}" in broken
        assert f"fs/smb/smbdirect/socket.c:{len(good.splitlines()) + 4}:" in broken
        assert "undeclared" in broken
        assert "passed" not in broken
        assert len(broken.splitlines()) < 30

        # As editors do, by renaming.
        new = source.with_suffix(".new")
        new.write_text(good + "\n/* mended */\n")
        new.replace(source)
        assert "passed: 1 of 1" in terminal.until(_WAITING)

        source.write_text(good + "\n/* another thought */\n")
        terminal.until("loading the driver")
        terminal.press(b"\x03")
        assert terminal.end() == ExitStatus.INTERRUPTED
        assert "interrupted" in terminal.shown
        assert "Traceback" not in terminal.shown
    assert testbed.leftovers() == []
    assert len([run for run in results.iterdir() if not run.is_symlink()]) >= 3
