"""The package's layout: who may import whom, and that nothing goes in circles."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from smbdirect_testbed.lib import paths

FLOORS = (
    {"__main__"},
    {"cli", "bench"},
    {"run"},
    {"scenario"},
    {"plugin"},
    {"environment"},
    {"carriers", "smb", "evidence"},
    {"machine"},
    {"kernel"},
    {"image"},
    {"config"},
    {"lib"},
)
"""From top to bottom: packages, and modules of the top level; each imports from lower floors."""
FLOOR = {package: number for number, floor in enumerate(FLOORS) for package in floor}
BESIDE: dict[str, set[str]] = {
    # What a run found, read and written without any machine.
    "results": {"config", "lib"},
    # What runs in machines, with nothing but a plain Python.
    "agent": set(),
    "echo": {"smbdirect"},
    "smbdirect": set(),
}
"""Beside the others, with the packages that each may import."""
LOWEST_WITH_RESULTS = "plugin"
"""The lowest floor that may import results."""
EXCEPTIONS = {
    ("cli.main", "bench.cli"),
    ("echo.cli", "lib.errors"),
    ("machine.agent_client", "agent.requests"),
    ("machine.topology", "agent.requests"),
    ("scenario", "echo.connection"),
    ("scenario", "echo.pack"),
}


def modules() -> dict[str, Path]:
    """The package's modules by name, without the package's own name."""
    found = {}
    for file in paths.PACKAGE.rglob("*.py"):
        parts = file.relative_to(paths.PACKAGE).with_suffix("").parts
        if name := ".".join(part for part in parts if part != "__init__"):
            found[name] = file
    return found


MODULES = modules()


def imports(module: str) -> Iterator[str]:
    """Names of the package's modules that one imports anywhere, types included."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, _, base = node.module.partition(".")
            if package == paths.PACKAGE.name:
                for name in node.names:
                    full = f"{base}.{name.name}".lstrip(".")
                    yield full if full in MODULES else base
        elif isinstance(node, ast.Import):
            yield from (
                name.name.partition(".")[2]
                for name in node.names
                if name.name.startswith(f"{paths.PACKAGE.name}.")
            )


def may_use(own: str, other: str) -> bool:
    """Whether a package may import another."""
    if own in BESIDE:
        return other in BESIDE[own]
    if other == "results":
        return FLOOR[own] <= FLOOR[LOWEST_WITH_RESULTS]
    return FLOOR[own] < FLOOR.get(other, -1)


def objections(module: str) -> list[str]:
    """What is wrong with a module's imports."""
    own = module.partition(".")[0]
    return [
        f"{module} imports {other}: {own} may not use {package}"
        for other in imports(module)
        if (package := other.partition(".")[0]) != own
        and (module, other) not in EXCEPTIONS
        and not may_use(own, package)
    ]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_imports_upwards(module: str) -> None:
    assert not objections(module)


def test_no_circles() -> None:
    done: set[str] = set()

    def follow(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' → '.join((*way[way.index(module) :], module))}"
        if module not in done:
            for other in imports(module):
                if other in MODULES and other != module:
                    follow(other, (*way, module))
            done.add(module)

    for module in MODULES:
        follow(module, ())


IMPORT_EACH = """
import importlib, os, sys, traceback

for name in %(others)r:
    importlib.import_module(name)
assert not [name for name in sys.modules if name.startswith("smbdirect_testbed")]
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException:
            print(f"{name}: {traceback.format_exc()}", flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        print(f"{name}: status {status}")
"""
OTHERS = ("click", "jinja2", "psutil", "pydantic", "pydantic.dataclasses", "pytest", "rich.table")
"""Packages that many modules import: once for all of them."""


def failed_imports(names: Iterable[str], directory: Path) -> str:
    """Import modules, each in an interpreter that has none of the package; what went wrong."""
    script = IMPORT_EACH % {"others": OTHERS}
    argv = [sys.executable, "-P", "-c", script, *names]
    env = {**os.environ, "PYTHONPATH": str(directory)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True, timeout=300)
    return done.stdout


def test_every_module_imports_on_its_own(tmp_path: Path) -> None:
    assert not failed_imports((f"{paths.PACKAGE.name}.{m}" for m in sorted(MODULES)), tmp_path)


def test_modules_that_need_each_other_are_found(tmp_path: Path) -> None:
    """Each of them could be imported after the other."""
    (tmp_path / "first.py").write_text("import second\nX = 1\n")
    (tmp_path / "second.py").write_text("from first import X\n")
    (tmp_path / "ends.py").write_text("import os\nos._exit(3)\n")
    assert failed_imports(["first"], tmp_path).startswith("first: Traceback")
    assert failed_imports(["second", "json"], tmp_path) == ""
    assert failed_imports(["ends"], tmp_path).startswith("ends: status")


def test_what_may_not_be_used_is_found() -> None:
    assert may_use("cli", "lib")
    assert may_use("run", "results")
    assert not may_use("lib", "config")
    assert not may_use("carriers", "smb")
    assert not may_use("environment", "results")
    assert not may_use("cli", "agent")
    assert not may_use("agent", "lib")
