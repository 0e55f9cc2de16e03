"""Parts of starting a machine that all carriers share."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from smbdirect_testbed.carriers.console import ConsoleReader, last_lines
from smbdirect_testbed.kernel.splats import SplatKind, find_splats
from smbdirect_testbed.lib import cancel, process
from smbdirect_testbed.lib.errors import MachineDied, ProvisionError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.lib.wait import wait_until
from smbdirect_testbed.machine.agent_client import AgentClient
from smbdirect_testbed.machine.machine import Machine

_READY = "testbed: ready"
_FATAL = {SplatKind.PANIC, SplatKind.OOPS, SplatKind.BUG}
_SCRATCH_SIZE = "4G"
_ATTEMPTS = 2

M = TypeVar("M")


class BootFailed(MachineDied):
    """A machine did not come up."""


def wait_until_ready(machine: Machine, *, timeout: float) -> None:
    """Wait until the console says that the machine takes connections.

    :param timeout: seconds
    :raises BootFailed: it died, its kernel failed, or it took too long
    """
    readiness = _Readiness(machine)
    try:
        wait_until(readiness.is_ready, "the machine to be ready", timeout=timeout, interval=0.02)
    except BootFailed:
        raise
    except ProvisionError as e:
        raise _late(machine, timeout) from e


def wait_until_answering(machine: Machine, agent: AgentClient, *, timeout: float) -> None:
    """Wait until the machine's agent has started.

    :param timeout: seconds
    :raises BootFailed: it died, its kernel failed, or it took too long
    """
    readiness = _Readiness(machine)
    if not agent.wait_ready(readiness.look, timeout=timeout, interval=0.05):
        raise _late(machine, timeout)


class _Readiness:
    """How far a machine has booted."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._reader = ConsoleReader(machine.console)
        self._seen: list[str] = []

    def look(self) -> None:
        """Raise :class:`BootFailed` if it will never be ready."""
        self.is_ready()

    def is_ready(self) -> bool:
        """Whether the console says so; raises as :meth:`look` does."""
        failure = self._machine.death()
        self._seen.extend(self._reader.new_lines())
        if any(_READY in line for line in self._seen):
            return True
        fatal = (s.title for s in find_splats("\n".join(self._seen)) if s.kind in _FATAL)
        if failure := failure or next(fatal, None):
            raise _boot_failed(self._machine, failure)
        return False


def _late(machine: Machine, timeout: float) -> BootFailed:
    return _boot_failed(machine, f"it was not ready after {timeout:g} s")


def boot_twice(
    attempt: Callable[[tuple[str, ...]], M],
    clean_up: Callable[[], object],
    console: Path,
    progress: Progress,
) -> M:
    """Boot a machine; if it does not come up, say why and try once more.

    :param attempt: boots it; gets the reasons why earlier attempts failed
    :param clean_up: removes the files of a failed attempt
    :param console: it is kept under another name if its attempt failed
    :raises BootFailed: it did not come up, twice
    """
    failures: tuple[str, ...] = ()
    while True:
        try:
            return attempt(failures)
        except BootFailed as e:
            failures = (*failures, e.message)
            clean_up()
            if len(failures) == _ATTEMPTS:
                raise
            kept = console.replace(console.with_suffix(f".{len(failures)}.log"))
            progress.say(f"{e.message}; starting it again (its console is in {kept})")


def do_together(*works: Callable[[], object]) -> None:
    """Do things in parallel that mostly wait for programs; raises what the first raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(cancel.carried(work)) for work in works]:
            done.result()


def claim_port(wanted: int) -> int:
    """The loopback port ``wanted``, or a free one for 0.

    :raises ProvisionError: it is in use
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as e:
            raise ProvisionError(
                f"port {wanted} on 127.0.0.1, which the machine's ssh should get,"
                f" cannot be used: {e.strerror}",
                hint="set ssh_port to another port, or to 0 for any that is free",
            ) from e
        port: int = probe.getsockname()[1]
        return port


def make_scratch_disk(image: Path) -> None:
    """Make a disk with an empty ext4; it takes up space as it is written to."""
    image.unlink(missing_ok=True)
    # root_owner: otherwise the top directory belongs to this user.
    options = "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1"
    process.run(
        ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-E", options, image, _SCRATCH_SIZE],
        env={"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"},
        timeout=60,
    )


def _boot_failed(machine: Machine, reason: str) -> BootFailed:
    return BootFailed(
        f"machine {machine.name} did not boot: {reason}",
        hint=f"its console is in {machine.console}",
        detail=last_lines(machine.console),
    )
