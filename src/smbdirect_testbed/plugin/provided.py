"""One environment that scenarios run in, from the first of them to the last."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from smbdirect_testbed.kernel.splats import Splat
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.plugin.evidence import Evidence, log_name
from smbdirect_testbed.plugin.leftovers import Leftovers
from smbdirect_testbed.results.kernel_reports import KernelReports

if TYPE_CHECKING:
    from smbdirect_testbed.environment.environment import Environment


class ProvidedEnvironment:
    """An environment, and what watches it::

        up = ProvidedEnvironment(provide, results, progress, notes, reports)
        up.open()
        ...
        up.close()

    :param provide: makes the environment when a ``with`` statement enters what it returns
    :param results: the run's directory
    :param notes: takes lines about what could not be watched
    :param reports: takes what the kernels report
    :param number: which one of the run's it is, from 1
    """

    environment: Environment
    evidence: Evidence
    leftovers: Leftovers

    def __init__(
        self,
        provide: Callable[[], AbstractContextManager[Environment]],
        results: Path,
        progress: Progress,
        notes: list[str],
        reports: KernelReports,
        number: int = 1,
    ) -> None:
        self._provide = provide
        self._results = results
        self._progress = progress
        self._notes = notes
        self._reports = reports
        self.number = number
        self._stack = ExitStack()

    def open(self, directory: Path) -> list[Splat]:
        """Provide the environment; leaves nothing behind when that fails.

        :param directory: for what the kernel said meanwhile
        :returns: failures that the kernel reported meanwhile
        :raises TestbedError: the environment could not be provided
        """
        with ExitStack() as stack:
            self.environment = stack.enter_context(self._provide())
            with self._progress.phase("watch", "watching kernel log and wire"):
                evidence = Evidence(self.environment, self._results, self._notes, self._reports)
                self.evidence = stack.enter_context(evidence)
                splats = self.evidence.border("provided", directory)
            self.leftovers = Leftovers(self.environment)
            self._stack = stack.pop_all()
            return splats

    def close(self) -> list[Splat]:
        """Take the environment down, and keep its machines' kernel logs; harmless when repeated.

        :returns: failures that the kernel reported after the last scenario
        :raises TestbedError: something could not be undone
        """
        stack, self._stack = self._stack, ExitStack()
        if not hasattr(self, "evidence"):
            return []
        marks = self.evidence.last_marks
        late: list[Splat] = []
        # The directory with the consoles goes with the environment.
        with ExitStack() as held:
            logs = {
                name: held.enter_context(log.held())
                for name, log in self.environment.kernel_logs.items()
            }
            try:
                stack.close()
            finally:
                for name, log in logs.items():
                    (self._results / self._log_name(name)).write_bytes(log.all())
                    late += self.evidence.late(log.since(marks[name]))
        return late

    def _log_name(self, machine: str) -> str:
        name = log_name(machine, self.environment.machines)
        return name if self.number == 1 else name.replace(".log", f".{self.number}.log")
