"""The command line: help, bad usage, exit statuses; what needs a machine is in tests/machines."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from smbdirect_testbed.cli.main import cli
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.version import own_version


def _cli(tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "smbdirect_testbed", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "SMBDIRECT_TESTBED_STATE": str(tmp_path / "state"),
            "SMBDIRECT_TESTBED_CACHE": str(tmp_path / "cache"),
            "SMBDIRECT_TESTBED_RESULTS": str(tmp_path / "results"),
        },
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "command", ["run", "up", "shell", "exec", "status", "down", "list", "doctor", "clean"]
)
def test_help_of_every_command(tmp_path: Path, command: str) -> None:
    done = _cli(tmp_path, command, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5
    assert command in _cli(tmp_path, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'"),
        (["run", "rxee"], "unknown environment 'rxee'"),
        (
            ["run", "rxe", "scenarios/test_nothing.py"],
            "there is no scenario scenarios/test_nothing",
        ),
        (["run", "./nothing.toml"], "there is no environment file"),
        (["run", "rxe", "--driver", "/nowhere"], "/nowhere"),
        (["run", "rxe", "-k", "no_such_scenario"], "no_such_scenario"),
        (["run", "rxe", "-k", "and and"], "and and"),
        (["up", "rxee"], "unknown environment 'rxee'"),
        (["shell"], "no environment is up"),
        (["exec", "client", "--", "true"], "no environment is up"),
        (["down"], "no environment is up"),
    ],
)
def test_bad_usage_is_one_clear_line_and_status_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = _cli(tmp_path, *arguments)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    assert not list(tmp_path.glob("state/*"))


def test_traceback_only_for_debug_as_an_option(tmp_path: Path) -> None:
    assert "Traceback" in _cli(tmp_path, "--debug", "down").stderr
    # Here it is a part of the command that is to be run.
    assert "Traceback" not in _cli(tmp_path, "exec", "client", "--", "x", "--debug").stderr


def test_version(tmp_path: Path) -> None:
    said = _cli(tmp_path, "--version").stdout
    assert said == f"smbdirect-testbed, version {own_version()}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+( \(git [0-9a-f]{12}(, changed)?\))?", own_version())


def test_status_and_clean_with_nothing_there(tmp_path: Path) -> None:
    assert _cli(tmp_path, "status").stdout == "nothing is up\n"
    assert _cli(tmp_path, "clean").stdout == "nothing to remove\n"


def test_clean_removes_what_it_showed(tmp_path: Path) -> None:
    image = tmp_path / "cache" / "images" / "x"
    image.mkdir(parents=True)
    (image / "root").write_bytes(b"x" * 2**20)
    shown = _cli(tmp_path, "clean", "--cache", "--yes").stdout
    assert str(tmp_path / "cache" / "images") in shown
    assert "freed 1 MiB" in shown
    assert not image.exists()


def test_list_says_what_each_is_for(tmp_path: Path) -> None:
    assert "RoCEv2" in _cli(tmp_path, "list").stdout


def test_list_says_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (paths.environments() / "rxe.toml").read_text()
    (tmp_path / "cloudy.toml").write_text(text.replace('carrier = "vm"', 'carrier = "cloud"'))
    monkeypatch.setattr(paths, "environments", lambda: tmp_path)
    listed = CliRunner().invoke(cli, ["list"]).output
    assert listed.startswith("cloudy")
    assert "(broken: environment cloudy: there is no carrier 'cloud')" in listed
