"""Instances: environments that are up, as later commands find them.

Each has a directory below :func:`paths.state`. The process that provides an instance holds a lock
in it. An instance without such a process that was not to be kept is an orphan: the next command
removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smbdirect_testbed.carriers import start
from smbdirect_testbed.config.spec import Role
from smbdirect_testbed.environment.environment import Environment
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import UsageError
from smbdirect_testbed.machine.host import Host


@dataclass(frozen=True)
class Instance:
    """One instance directory.

    ::

        hosts = find_instance("rxe").hosts()
        hosts["client"].run(["rdma", "link"])

    :param name: unique on this computer
    """

    name: str
    directory: Path

    @property
    def environment(self) -> str:
        """The name of its environment; empty while it is being provided."""
        return str(self._state().get("environment", ""))

    @property
    def kept(self) -> bool:
        """Whether it stays after the process that provided it."""
        return bool(self._state().get("kept"))

    @property
    def age(self) -> float:
        """Seconds since its start."""
        return time.time() - self.directory.stat().st_mtime

    def in_use(self) -> bool:
        """Whether the process that provides it still runs."""
        try:
            with (self.directory / "lock").open("rb") as f:
                try:
                    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
        except FileNotFoundError:
            return False
        return False

    def hosts(self) -> dict[str, Host]:
        """Its hosts, reached from this process.

        :raises UsageError: it is not up
        """
        state = self._state()
        if "hosts" not in state:
            raise UsageError(f"{self.name} is not up yet")
        names = {h["machine"] for h in state["hosts"].values()}
        found = {name: start.attach(name, self.directory) for name in names}
        return {
            name: Host(name, Role(h["role"]), found[h["machine"]], (), h["pid"])
            for name, h in state["hosts"].items()
        }

    def write_state(self, environment: Environment, *, kept: bool) -> None:
        """Write the data that later commands need to reach the hosts."""
        state = {
            "environment": environment.spec.name,
            "kept": kept,
            "hosts": {
                name: {
                    "role": host.role.value,
                    "pid": host.pid,
                    "machine": host.machine.name,
                }
                for name, host in environment.hosts.items()
            },
        }
        new = self.directory / "state.json.new"
        new.write_text(json.dumps(state, indent=1))
        new.replace(self.directory / "state.json")

    def remove(self) -> None:
        """Stop all its processes and remove its directory. Harmless when repeated."""
        start.destroy_all(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.directory / "state.json").read_text())
        except FileNotFoundError:
            return {}
        return state


def instances() -> list[Instance]:
    """All instances, the oldest first."""
    root = paths.state()
    found = [Instance(p.name, p) for p in root.glob("[!.]*") if p.is_dir()] if root.exists() else []
    return sorted(found, key=lambda i: i.directory.stat().st_mtime)


def find_instance(name: str | None) -> Instance:
    """The instance of that name, or the only one that is up.

    :raises UsageError: there is none, or more than one and no name
    """
    up = [i for i in instances() if i.kept or i.in_use()]
    if name:
        for instance in up:
            if name in (instance.name, instance.environment):
                return instance
        raise UsageError(f"no environment {name!r} is up", hint="see smbdirect-testbed status")
    if not up:
        raise UsageError("no environment is up", hint="start one: smbdirect-testbed up rxe")
    if len(up) > 1:
        raise UsageError(
            f"more than one environment is up: {', '.join(i.name for i in up)}",
            hint="name one with --instance",
        )
    return up[0]


def orphans() -> list[Instance]:
    """Instances without a process that provides them, and that were not to be kept."""
    return [i for i in instances() if not i.kept and not i.in_use()]


@contextmanager
def new_instance(name: str, *, keep: bool) -> Iterator[Instance]:
    """Make an instance directory and hold its lock; on exit remove it, unless it was kept.

    :raises UsageError: an instance of that name exists
    """
    # Logs, and keys of machines, are no other user's business.
    paths.state().mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = paths.state() / name
    # It gets its name after it is locked; otherwise it could be taken for an orphan.
    unnamed = Path(tempfile.mkdtemp(prefix=".new-", dir=paths.state()))
    lock = os.open(unnamed / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        unnamed.rename(directory)
    except OSError:
        shutil.rmtree(unnamed)
        os.close(lock)
        raise UsageError(
            f"{name} is up already",
            hint="use it: smbdirect-testbed shell; or end it: "
            f"smbdirect-testbed down --instance {name}",
        ) from None
    instance = Instance(name, directory)
    try:
        yield instance
    finally:
        if not (keep and instance.kept):
            instance.remove()
        os.close(lock)
