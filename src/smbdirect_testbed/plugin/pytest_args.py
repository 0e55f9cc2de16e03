"""How pytest is called for scenarios, whatever directory or project it is called in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from smbdirect_testbed.lib import paths

# The configuration of the project whose checkout we are in is that of its own tests.
_PYTEST_OPTIONS = (
    "--config-file=/dev/null",
    "--import-mode=importlib",
    "--strict-markers",
    "-p",
    "no:cacheprovider",
    # Plugins that come with libraries of ours, and take long to import.
    "-p",
    "no:anyio",
    "-p",
    "no:pytest11.testinfra",
    "--tb=short",
    # Not what is written to descriptor 2, which is where progress goes.
    "--capture=sys",
    "--override-ini=junit_family=xunit1",
    "--override-ini=junit_suite_name=smbdirect-testbed",
    "--override-ini=junit_logging=all",
    "--override-ini=junit_log_passing_tests=false",
)


def pytest_arguments(scenarios: Sequence[str], expression: str | None, junit: Path) -> list[str]:
    """The arguments for a run.

    :param scenarios: pytest's paths and node ids
    :param expression: pytest's ``-k``
    :param junit: the file for results as junit has them
    """
    files = [Path(s.partition("::")[0]).resolve() for s in scenarios]
    root = paths.PROJECT
    if not all(f.is_relative_to(root) for f in files):
        root = Path(os.path.commonpath(files))
        root = root if root.is_dir() else root.parent
    return [
        *scenarios,
        *_PYTEST_OPTIONS,
        f"--rootdir={root}",
        f"--junitxml={junit}",
        *(["-k", expression] if expression else []),
    ]
