"""What a run has at hand: fixtures and hooks reach the environment and the results by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from smbdirect_testbed.plugin.foundations import Foundations
from smbdirect_testbed.plugin.recorder import Recorder
from smbdirect_testbed.results.results import RunResults

if TYPE_CHECKING:
    from smbdirect_testbed.environment.environment import Environment
    from smbdirect_testbed.plugin.evidence import Evidence
    from smbdirect_testbed.plugin.provided import ProvidedEnvironment


@dataclass
class RunContext:
    """One run.

    :param foundations: which scenario files are red; known when scenarios were collected
    :param up: the environment that scenarios use; another one after a machine was broken
    """

    results: RunResults
    recorder: Recorder = field(default_factory=Recorder)
    up: ProvidedEnvironment | None = None
    foundations: Foundations | None = None

    @property
    def environment(self) -> Environment:
        """The environment, while scenarios run."""
        assert self.up
        return self.up.environment

    @property
    def evidence(self) -> Evidence:
        """The evidence of what happens while scenarios run."""
        assert self.up
        return self.up.evidence

    @property
    def notes(self) -> list[str]:
        """Lines for the results about what is worth knowing and fails nothing."""
        return self.results.notes

    def scenario_directory(self, id: str) -> Path:
        """The directory for what a scenario leaves; need not exist yet."""
        return self.results.directory / "scenarios" / self.recorder.directory(id)
