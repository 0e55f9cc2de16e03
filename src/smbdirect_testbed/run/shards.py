"""One run in several environments at once, each with a share of the scenarios.

A machine without KVM waits more than it computes, so two of them take little longer than one.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from smbdirect_testbed.carriers.table import carrier
from smbdirect_testbed.config.spec import EnvironmentSpec
from smbdirect_testbed.lib.errors import TestbedError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.plugin.publish import merged, publish
from smbdirect_testbed.plugin.shard import Share
from smbdirect_testbed.results.record import recorded
from smbdirect_testbed.results.results import RunResults

_MIB = 1 << 20
_INTERRUPTED_SECONDS = 4.0
"""After which a share of an interrupted run is killed. Its results are those that it recorded."""
_PR_SET_PDEATHSIG = 1
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Part = Callable[[Share, Path], RunResults]
"""Runs a share, with a directory for its results."""


def useful_jobs(spec: EnvironmentSpec) -> int:
    """The number of parallel environments that makes a run shortest on this computer."""
    need = spec.machine.memory * len(spec.machines) * _MIB
    room = psutil.virtual_memory().available // (2 * need) if need else 0
    return max(1, min(carrier(spec.carrier).at_once, 1 + (os.cpu_count() or 1), room))


def run_in_parts(
    part: Part, jobs: int, directory: Path, progress: Progress, *, kind: str = ""
) -> RunResults:
    """Run all shares at the same time, each in a process of its own; publish the results.

    :param kind: what scenarios take alike in: see :class:`Share`
    :param directory: of the run's results
    :raises TestbedError: what a share raised, as if there were no shares
    """
    with progress.shared():
        answers = _answers_of(part, jobs, directory, kind)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    parts = [answer for answer in answers if isinstance(answer, RunResults)]
    found = merged(directory, parts, progress.elapsed())
    publish(found, keep=False)
    return found


def _answers_of(
    part: Part, jobs: int, directory: Path, kind: str
) -> list[RunResults | BaseException]:
    """Run all shares; what came of each."""
    context = multiprocessing.get_context("fork")
    running: dict[Connection, BaseProcess] = {}
    directories = [directory / f"part-{number + 1}" for number in range(jobs)]
    try:
        with _signals_later() as waiting:
            for number, below in enumerate(directories):
                receiver, sender = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(
                    target=_work,
                    args=(part, Share(number, jobs, kind), below, sender, waiting),
                    name=below.name,
                )
                process.start()
                sender.close()
                running[receiver] = process
        return _answers(running, directories)
    except KeyboardInterrupt:
        for process in running.values():
            process.terminate()
        return _answers(running, directories, within=_INTERRUPTED_SECONDS)


def _answers(
    running: dict[Connection, BaseProcess], directories: Sequence[Path], within: float | None = None
) -> list[RunResults | BaseException]:
    """What all processes sent, in their order, once they have ended.

    :param directories: where one that ends without an answer left a record
    :param within: seconds after which those that go on are killed; None for never
    """
    deadline = None if within is None else time.monotonic() + within
    for receiver in list(running):
        wait([receiver], None if deadline is None else max(0.0, deadline - time.monotonic()))
    found: list[RunResults | BaseException] = []
    for (receiver, process), directory in zip(running.items(), directories, strict=True):
        try:
            if not receiver.poll():
                raise EOFError
            found.append(receiver.recv())
        except EOFError:
            process.kill()
            why = f"{process.name} of the run ended without a result"
            found.append(recorded(directory, why) or RuntimeError(why))
        process.join()
    return found


@contextmanager
def _signals_later() -> Iterator[Iterable[int]]:
    """Have the signals that end a run wait until the context ends; yields those that did before.

    A process that was just started must be known to whoever ends them all, or it is waited for; and
    it must be ready to say what came of it, so it has them wait, too. This process has one thread.
    """
    waiting = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield waiting
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, waiting)


def _work(
    part: Part,
    share: Share,
    directory: Path,
    sender: Connection,
    waiting: Iterable[int],
) -> None:
    # Ctrl-C is for the parent, which passes it on. The child ends if the parent is killed.
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    answer: RunResults | BaseException
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, waiting)
        answer = part(share, directory)
    except TestbedError as e:
        answer = e
    except KeyboardInterrupt:
        answer = KeyboardInterrupt()
    sender.send(answer)
    sys.stdout.flush()
    sys.stderr.flush()
