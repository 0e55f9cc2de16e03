"""The carrier ``local``: the kernel of this computer, only when it is named.

A machine is a process tree in namespaces of its own, with the image's root file system. It needs no
package of the computer and writes to none of its files. When the tree's first process ends,
everything that it made ends too, except the modules that it loaded.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from uuid import uuid4

from smbdirect_testbed.carriers.boot import make_scratch_disk
from smbdirect_testbed.carriers.console import last_lines
from smbdirect_testbed.carriers.local.first_process import FirstProcess, first_process
from smbdirect_testbed.carriers.local.modules import ours
from smbdirect_testbed.carriers.local.record import (
    LocalRecord,
    boot,
    process_note,
    read_record,
    write_record,
)
from smbdirect_testbed.carriers.local.teardown import take_down
from smbdirect_testbed.carriers.watched_run import run_watched
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.kernel.built_driver import BuiltDriver
from smbdirect_testbed.kernel.running import RunningKernel, loaded_modules
from smbdirect_testbed.lib import process
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.process import CommandResult
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.machine.machine import Machine
from smbdirect_testbed.machine.shared_directory import SharedDirectory
from smbdirect_testbed.machine.ssh import KILL_TAGGED, TAG

_INIT = Path(__file__).with_name("init.py")
_SHARED_THERE = PurePosixPath("/testbed")
_START_TIMEOUT = 60.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class LocalMachine(Machine):
    """Namespaces of this computer that have an image's root file system."""

    accelerator = "none"

    def __init__(self, record: LocalRecord, first: FirstProcess | None) -> None:
        shared = SharedDirectory(record.shared, _SHARED_THERE)
        super().__init__(record.name, shared, record.console)
        self.provenance = {"kernel_version": os.uname().version}
        self._first = first
        self._condemned = ""

    def close(self) -> None:
        """Stop watching the machine; it runs on."""
        if self._first:
            self._first.close()
            self._first = None

    def argv(self, command: Sequence[str], *, tty: bool = False) -> list[str]:
        return self._argv(command)

    def condemn(self, reason: str) -> None:
        self._condemned = self._condemned or reason
        if self._first:
            self._first.kill()

    def death(self) -> str | None:
        if self._condemned:
            return self._condemned
        return "its first process has ended" if not self._first or self._first.ended() else None

    def run(
        self,
        command: Sequence[str],
        *,
        input: str | bytes | None = None,
        timeout: float = 60,
        check: bool = True,
        namespaces_of: int = 0,
    ) -> CommandResult:
        tag = uuid4().hex
        argv = self._argv(self.inside(namespaces_of, command), tag=tag)
        try:
            done = run_watched(argv, input=input, timeout=timeout, watch=self.raise_if_dead)
        except CommandFailed as e:
            with suppress(CommandFailed):
                kill = self._argv(["sh", "-c", KILL_TAGGED, "sh", f"{TAG}={tag}"])
                process.run(kill, timeout=10)
            raise CommandFailed(command, e.status, e.output) from None
        if not done.ok:
            self.raise_if_dead()
        result = CommandResult(tuple(command), done.status, done.stdout, done.stderr)
        return result.check() if check else result

    def _argv(self, command: Sequence[str], tag: str = "") -> list[str]:
        self.raise_if_dead()
        assert self._first
        variables = {"PATH": _PATH, "HOME": "/root", "TERM": os.environ.get("TERM", "dumb")}
        if tag:
            variables[TAG] = tag
        return [
            *(*self._first.enter(), "--"),
            *("/usr/bin/env", "--ignore-environment", "--chdir=/root"),
            *(f"{name}={value}" for name, value in variables.items()),
            *command,
        ]


@contextmanager
def local_machine(
    name: str,
    image: Image,
    kernel: RunningKernel,
    directory: Path,
    progress: Progress,
    *,
    driver: BuiltDriver,
    own_network: bool,
    keep: bool = False,
) -> Iterator[LocalMachine]:
    """A machine on this computer's kernel, with the userland of ``image``.

    :param directory: of this machine alone
    :param driver: will be loaded, and unloaded when the machine ends
    :param own_network: let it have a network stack of its own, and not the computer's
    :param keep: leave the machine running, unless an exception ends the context; see
        :func:`attach_local` and :func:`destroy_local`
    :raises ProvisionError: another one is up, or this computer does not permit it
    """
    record = LocalRecord(
        name=name,
        uuid=uuid4(),
        directory=directory.absolute(),
        boot=boot(),
        modules_before=tuple(loaded_modules()),
        modules_ours=ours(kernel, [m.name for m in driver.modules]),
    )
    raise_if_up()
    # First: a later run finds the record by it if this one is killed.
    record.directory.mkdir(parents=True, exist_ok=True)
    write_record(record)
    kept = False
    try:
        text = f"starting machine {name} on this computer's kernel {kernel.release}"
        with progress.phase("machine", text):
            machine = _start(record, image, kernel, own_network=own_network)
        try:
            yield machine
        finally:
            machine.close()
        kept = keep
    finally:
        if not kept:
            take_down(record)


def raise_if_up() -> None:
    """Raise ProvisionError if there is such a machine: the kernel's modules cannot be shared."""
    if other := read_record():
        raise ProvisionError(
            f"another environment is up on this computer's kernel: {other.directory}",
            hint="end it: smbdirect-testbed down (or clean, if it was killed), as the same user",
        )


def attach_local(directory: Path) -> LocalMachine | None:
    """The machine that another process left running here; it may have died."""
    record = _record_of(directory)
    return LocalMachine(record, first_process(record)) if record else None


def destroy_local(directory: Path) -> bool:
    """End the machine in ``directory``, or remove what a killed run left of it.

    :returns: whether there was one
    :raises ProvisionError: a process of it does not end
    """
    record = _record_of(directory)
    if record:
        take_down(record)
    return record is not None


def destroy_local_stray() -> list[Path]:
    """End the machine whose directory was removed while it ran; returns the directory."""
    record = read_record()
    if not record or record.directory.exists() or os.geteuid():
        return []
    take_down(record)
    return [record.directory]


def _record_of(directory: Path) -> LocalRecord | None:
    record = read_record()
    return record if record and record.directory == directory.absolute() else None


def _start(
    record: LocalRecord, image: Image, kernel: RunningKernel, *, own_network: bool
) -> LocalMachine:
    for made in (record.shared, record.mount_point):
        made.mkdir(parents=True, exist_ok=True)
    record.console.write_bytes(b"")
    make_scratch_disk(record.scratch)
    settings = {
        "image": str(image.root),
        "scratch": str(record.scratch),
        "shared": str(record.shared),
        "console": str(record.console),
        "modules": str(kernel.modules),
        "root": str(record.mount_point),
        "group": record.control_group,
        "network": own_network,
        "note": str(process_note(record)),
        "parent": os.getpid(),
    }
    start = [sys.executable, "-I", "-S", str(_INIT), json.dumps(settings)]
    done = process.run(start, timeout=_START_TIMEOUT, check=False)
    first = first_process(record) if done.ok else None
    if first is None:
        raise ProvisionError(
            f"machine {record.name} did not start on this computer's kernel: "
            f"{done.output.strip() or 'its first process ended'}",
            detail=last_lines(record.console),
        )
    return LocalMachine(record, first)
