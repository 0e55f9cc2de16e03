"""watch at a terminal, as far as it goes without a machine."""

from __future__ import annotations

import os
from pathlib import Path

from tests.helpers.terminal import command_at_terminal

from smbdirect_testbed.lib.errors import ExitStatus

_WAITING = "waiting for a save; Ctrl-C ends"


def test_each_save_is_read_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    tree = tmp_path / "linux"
    for part in ("client", "common", "server", "smbdirect"):
        (tree / "fs/smb" / part).mkdir(parents=True)
    (tree / "fs/smb/Makefile").touch()
    scenario = tmp_path / "scenarios/test_mine.py"
    scenario.parent.mkdir()
    scenario.write_text("def test_one() -> None: pass\n")
    environment = {**os.environ, "SMBDIRECT_TESTBED_STATE": str(tmp_path / "state")}

    what = ("uml-rxe", str(scenario), "--driver", str(tree), "-k", "not test_one and test_two")
    with command_at_terminal(
        "watch", *what, directory=tmp_path, environment=environment
    ) as terminal:
        assert "saved" not in terminal.until(_WAITING)

        (tree / "fs/smb/smbdirect/socket.c").write_text("int saved;\n")
        shown = terminal.until(_WAITING)
        assert f"saved: {tree}/fs/smb/smbdirect/socket.c" in shown
        assert "no scenario matches" in shown

        scenario.write_text("def test_two( -> None: pass\n")
        shown = terminal.until(_WAITING)
        assert f"saved: {scenario}" in shown
        assert "SyntaxError" in shown

        terminal.press(b"\x03")
        assert terminal.end() == ExitStatus.INTERRUPTED
        assert "interrupted; nothing is left behind" in terminal.shown
        assert "Traceback" not in terminal.shown
