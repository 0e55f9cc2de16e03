"""Putting bugs back: the driver's source with them in it, and runs of what must catch them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from smbdirect_testbed.config.envfile import load_environment
from smbdirect_testbed.config.spec import DriverOrigin, DriverSpec
from smbdirect_testbed.image.image import provide_image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel import driver_source
from smbdirect_testbed.lib.errors import ExitStatus, ProvisionError
from smbdirect_testbed.lib.progress import Progress

from .bug import Bug

_LONGEST = 900.0
"""Seconds of a run. Every run has deadlines of its own; this is for those that do not keep them."""


class Verdict(StrEnum):
    """What became of a bug."""

    CAUGHT = "caught"
    MISSED = "missed"
    NOT_TRIED = "not tried"


@dataclass(frozen=True)
class Attempt:
    """One bug put back, and what the scenarios said.

    :param seconds: from the command to the verdict: building, starting a machine, running
    :param scenario: the first that failed
    :param says: the first line of its message; or why the bug was not tried
    """

    bug: Bug
    verdict: Verdict
    seconds: float = 0.0
    scenario: str = ""
    says: str = ""


@dataclass(frozen=True)
class Run:
    """How a run of scenarios ended.

    :param red: messages of those that failed, by name
    :param trouble: why there is no result; empty if there is one
    """

    seconds: float
    red: dict[str, str]
    trouble: str = ""


def write_source(environment: str, directory: Path, progress: Progress) -> None:
    """Write the driver's part of the distribution's kernel source for an environment's image."""
    image = provide_image(read_recipe(load_environment(environment).image), progress)
    origin = DriverSpec(origin=DriverOrigin.DISTRIBUTION)
    driver_source.resolve(origin, image, progress).write(directory)


@contextmanager
def source_with(bug: Bug | None, environment: str, progress: Progress) -> Iterator[Path]:
    """The driver's source with a bug put back, while the context lasts.

    :param bug: None: as it is
    :raises DoesNotFit: the source is another than the one the bug was made for
    """
    with tempfile.TemporaryDirectory(prefix="smbdirect-regression-") as directory:
        tree = Path(directory)
        write_source(environment, tree, progress)
        if bug:
            bug.put_back(tree)
        yield tree


def run(tree: Path, environment: str, expression: str, *options: str) -> Run:
    """Run scenarios with a driver, as a user does."""
    argv = [sys.executable, "-m", "smbdirect_testbed", "run", environment]
    argv += ["--driver", str(tree), "-k", expression, *options]
    with tempfile.TemporaryDirectory(prefix="smbdirect-regression-") as results:
        own = {**os.environ, "SMBDIRECT_TESTBED_RESULTS": results}
        begun = time.monotonic()
        try:
            done = subprocess.run(
                argv, env=own, capture_output=True, text=True, timeout=_LONGEST, check=False
            )
        except subprocess.TimeoutExpired:
            raise ProvisionError(f"a run did not end within {_LONGEST:.0f} s") from None
        seconds = time.monotonic() - begun
        if done.returncode not in (ExitStatus.PASSED, ExitStatus.FAILED):
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            return Run(seconds, {}, _error(said) or f"exit status {done.returncode}")
        record = json.loads((Path(results) / "latest/run.json").read_text())
    return Run(seconds, dict(_red(record)), "" if record["counts"]["passed"] else _idle(record))


def _red(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for scenario in record["scenarios"]:
        if scenario["outcome"] == "failed":
            yield scenario["id"], scenario["message"].strip().partition("\n")[0]


def _idle(record: dict[str, Any]) -> str:
    """Why a run in which nothing passed proves nothing."""
    return "" if dict(_red(record)) else f"nothing ran: {record['reason']}"


def _error(lines: list[str]) -> str:
    errors = [line for line in lines if "error:" in line]
    return errors[0] if errors else (lines or [""])[-1]


def attempt(bug: Bug, innocent: dict[str, str], progress: Progress) -> Attempt:
    """Put one bug back, and run what must catch it, up to the first failure.

    :param innocent: scenarios that are red without any bug, which prove nothing
    :raises DoesNotFit: the source is another than the one the bug was made for
    """
    # What is red anyway must not end the run before the scenario that counts.
    options = ("--maxfail", str(len(innocent) + 1), "--run-all")
    with source_with(bug, bug.environment, progress) as tree:
        done = run(tree, bug.environment, bug.expression, *options)
    if done.trouble:
        return Attempt(bug, Verdict.NOT_TRIED, done.seconds, says=done.trouble)
    for name, message in done.red.items():
        if name not in innocent:
            return Attempt(bug, Verdict.CAUGHT, done.seconds, name, message)
    return Attempt(bug, Verdict.MISSED, done.seconds)


def innocent(bugs: Iterable[Bug], environment: str, progress: Progress) -> Run:
    """Run all that must catch bugs with none of them: whatever is red then says nothing of them."""
    several = list(bugs)
    expression = " or ".join(sorted({f"({bug.expression})" for bug in several}))
    with source_with(None, environment, progress) as tree:
        return run(tree, environment, expression, "--run-all")
