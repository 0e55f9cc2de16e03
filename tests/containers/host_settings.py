"""Where a container's pip finds packages: as this computer's does."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from smbdirect_testbed.lib import process

_LOCAL = re.compile(r"(?P<scheme>(?:file://)?)(?P<path>/\S*)")
_THERE = "/of-host"


@dataclass(frozen=True)
class PipSettings:
    """pip's configuration here, for a container.

    :param environment: variables that say the same
    :param volumes: what of this computer they name, by path, as the docker SDK wants it
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def pip_settings() -> PipSettings:
    """pip's configuration on this computer: its files and the environment."""
    argv = [sys.executable, "-m", "pip", "config", "list"]
    lines = process.run(argv, timeout=60).stdout.splitlines()
    return translated([line for line in lines if "=" in line])


def translated(lines: list[str]) -> PipSettings:
    """The settings that lines of ``pip config list`` name: ``global.cert='/etc/ca.crt'``."""
    environment: dict[str, str] = {}
    volumes: dict[str, Mapping[str, str]] = {}
    for line in lines:
        name, _, value = line.partition("=")
        words = str(ast.literal_eval(value)).split()
        for number, word in enumerate(words):
            local = _LOCAL.fullmatch(word)
            if not local or not Path(local["path"]).exists():
                continue
            if local["scheme"]:
                # The pages of an index on this disk name files beside them by their full paths.
                shared = Path(local["path"]).parent
                volumes[str(shared)] = {"bind": str(shared), "mode": "ro"}
            else:
                # Elsewhere there, since packages bring files of that name, and replace them.
                there = _THERE + local["path"].rstrip("/")
                words[number] = there
                volumes[local["path"]] = {"bind": there, "mode": "ro"}
        key = name.rpartition(".")[2].upper().replace("-", "_")
        # Later lines have the greater weight in pip's list.
        environment[f"PIP_{key}"] = " ".join(words)
    return PipSettings(environment, volumes)
