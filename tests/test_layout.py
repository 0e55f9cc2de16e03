"""The package's layout: who may import whom, and that nothing goes in circles."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from smbdirect_testbed.lib import paths

FLOORS = (
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
RESULTS = {"results"}
"""Beside the others: what a run found, read and written without any machine."""
IN_MACHINES = {"agent", "echo", "smbdirect"}
"""What runs in machines, with nothing but a plain Python."""
MAY_USE = {
    **{name: set.union(*FLOORS[n + 1 :], RESULTS) for n, f in enumerate(FLOORS[:4]) for name in f},
    **{
        name: set.union(*FLOORS[n + 1 :], set())
        for n, f in enumerate(FLOORS)
        if n > 3
        for name in f
    },
    "results": {"config", "lib"},
    "agent": set(),
    "echo": {"smbdirect"},
    "smbdirect": set(),
}
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
        name = ".".join(p for p in parts if not p.startswith("__init__"))
        if name and parts[-1] != "__main__":
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


def objections(module: str) -> list[str]:
    """What is wrong with a module's imports."""
    own = module.partition(".")[0]
    return [
        f"{module} imports {other}: {own} may not use {other.partition('.')[0]}"
        for other in imports(module)
        if own != other.partition(".")[0]
        and other.partition(".")[0] not in MAY_USE[own]
        and (module, other) not in EXCEPTIONS
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


def test_every_module_imports_on_its_own() -> None:
    for module in MODULES:
        if not module.endswith("libvirt_worker"):
            importlib.import_module(f"{paths.PACKAGE.name}.{module}")
