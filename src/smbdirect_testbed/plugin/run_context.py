"""What a run has at hand: fixtures and hooks reach the environment and the results by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING

from smbdirect_testbed.plugin.breakage import Breakage
from smbdirect_testbed.plugin.foundations import Foundations
from smbdirect_testbed.plugin.recorder import Recorder
from smbdirect_testbed.results.results import RunResults

if TYPE_CHECKING:
    from smbdirect_testbed.environment.environment import Environment
    from smbdirect_testbed.plugin.evidence import Evidence
    from smbdirect_testbed.plugin.provided import ProvidedEnvironment


class State(Enum):
    """How far a run is."""

    COLLECTING = auto()
    UP = auto()
    """Scenarios run in the environment that is up."""
    BROKEN = auto()
    """The environment is up, but no further scenario may use it."""
    OVER = auto()
    """No further scenario runs."""


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
    state: State = State.COLLECTING
    breakage: Breakage = field(default_factory=Breakage)

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

    @property
    def known_foundations(self) -> Foundations:
        """Which scenario files are red; after the collection."""
        assert self.foundations
        return self.foundations

    def broken(self, id: str, what: str) -> None:
        """A scenario broke the machines: no further one may use them."""
        if self.state is State.UP:
            self.state = State.BROKEN
            self.breakage.broke(id, what)
