"""The face that scenarios import: they use nothing else, and its examples are right."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import mypy.api
import pytest

from smbdirect_testbed import scenario
from smbdirect_testbed.cli import reference
from smbdirect_testbed.lib import paths

SCENARIOS = paths.scenarios()
PROGRAMS = SCENARIOS / "programs"
FILES = sorted(SCENARIOS.rglob("*.py"))

EXAMPLES = """\
from pathlib import Path
import pytest
from smbdirect_testbed.scenario import *

"""
ARGUMENTS = (
    *("environment: Environment", "server: Host", "client: Host", "driver: LoadedDriver"),
    *("smbd: Smbd", "ksmbd: Ksmbd", "smbclient: SmbClient", "wire: Wire", "scenario_log: Path"),
    *("torture: Torture", "request: pytest.FixtureRequest"),
    # What scenarios make themselves.
    *("done: CommandResult", "expectations: Expectations", "subtest: Subtest", "path: Path"),
)


def imported(file: Path) -> Iterator[str]:
    """What a file imports of the package, without the package's own name."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                found = [f"{module}.{n.name}" for n in names]
            case ast.Import(names=names):
                found = [n.name for n in names]
            case _:
                continue
        yield from (
            name.partition(".")[2] for name in found if name.partition(".")[0] == paths.PACKAGE.name
        )


def objections(file: Path) -> list[str]:
    """What a file of scenarios imports that it may not."""
    if file.is_relative_to(PROGRAMS):  # they run in machines
        return [name for name in imported(file) if name != "smbdirect"]
    return [name for name in imported(file) if name.partition(".")[0] != "scenario"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SCENARIOS)))
def test_scenarios_import_the_face_alone(file: Path) -> None:
    assert not objections(file)


def test_there_are_scenarios_and_they_use_the_face() -> None:
    assert len([f for f in FILES if any(n.startswith("scenario.") for n in imported(f))]) >= 15


@pytest.mark.parametrize(
    "text",
    [
        "from smbdirect_testbed.machine.host import Host",
        "import smbdirect_testbed.machine.host",
        "import smbdirect_testbed",
        "from smbdirect_testbed import smbdirect",
        "def later():\n    from smbdirect_testbed.lib import wait",
    ],
)
def test_other_imports_are_found(tmp_path: Path, text: str) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(f"from smbdirect_testbed.scenario import Host\n{text}\n")
    assert len(objections(file)) == 1


def test_the_face_says_all_that_it_has() -> None:
    public = {name for name in vars(scenario) if not name.startswith("_")} - {"annotations"}
    assert public == set(scenario.__all__)


def test_examples_are_right(tmp_path: Path) -> None:
    """As far as types say: names exist, arguments fit."""
    entries = [*reference.fixtures(), *reference.names()]
    functions = [
        f"def example_{n}({', '.join(ARGUMENTS)}) -> None:\n    # {entry.name}\n"
        + textwrap.indent(entry.example, "    ")
        for n, entry in enumerate(entries)
    ]
    marked = [
        f"{m.example}\ndef marked_{n}() -> None: ..." for n, m in enumerate(reference.markers())
    ]
    file = tmp_path / "examples.py"
    file.write_text(EXAMPLES + "\n\n".join([*functions, *marked]) + "\n")
    options = [
        f"--config-file={paths.PROJECT / 'pyproject.toml'}",
        f"--cache-dir={paths.PROJECT / '.mypy_cache'}",
    ]
    said, errors, status = mypy.api.run([*options, str(file)])
    assert status == 0, said + errors
    assert "1 source file" in said
