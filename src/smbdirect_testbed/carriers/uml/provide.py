"""The carrier ``uml``: User Mode Linux, a kernel that runs as a program of this user.

It needs no KVM and no privilege, and runs programs at nearly this computer's speed. Its options
are described in the kernel's ``Documentation/virt/uml/user_mode_linux_howto_v2.rst``.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from uuid import uuid4

from smbdirect_testbed.carriers.boot import (
    boot_twice,
    claim_port,
    do_together,
    make_scratch_disk,
    wait_until_answering,
)
from smbdirect_testbed.carriers.carrier import MachineParts
from smbdirect_testbed.carriers.console import last_lines
from smbdirect_testbed.carriers.machine_links import MachineLinkEnd
from smbdirect_testbed.carriers.machine_process import QemuProcess, end_processes, open_process
from smbdirect_testbed.carriers.remote_machine import SshMachine
from smbdirect_testbed.carriers.uml.memory_place import memory_place
from smbdirect_testbed.carriers.uml.slirp import Slirp
from smbdirect_testbed.carriers.uml.state import (
    UmlRecord,
    UmlState,
    identity_of,
    uuid_option,
)
from smbdirect_testbed.config.spec import MachineSpec
from smbdirect_testbed.image.image import INIT, Image
from smbdirect_testbed.kernel.uml import UmlProgram
from smbdirect_testbed.lib.cache import disk_full_reported
from smbdirect_testbed.lib.confinement import Confinement, landlock_version, start_confined
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.lib.untrusted import UntrustedDirectory
from smbdirect_testbed.machine.agent_connection import AgentSocket
from smbdirect_testbed.machine.agent_program import offer_agent
from smbdirect_testbed.machine.shared_directory import SharedDirectory
from smbdirect_testbed.machine.ssh import SshChannel, make_keys

_SHARED_THERE = PurePosixPath("/testbed")
_BOOT_TIMEOUT = 120.0
"""Seconds. Measured on a busy computer: 2 for an ordinary kernel, 20 for one that checks itself."""
_PORT_ATTEMPTS = 5
_AGENT_PORT = "/dev/ttyS0"
_MEMORY_PLACES = (Path("/dev/shm"), Path("/run"))
"""Where this computer may have room for a machine's memory; its disks are the last resort."""

_READ_BY_KERNEL = (Path("/proc/cpuinfo"),)
"""What the kernel looks at when it starts."""
_NULL = Path("/dev/null")
"""What its channels without another end open for reading and writing (``null_open`` in
``arch/um/drivers/null.c``). One that it cannot open is a console that stays silent."""


_Parts = MachineParts[UmlProgram]


class UmlMachine(SshMachine):
    """A kernel that runs as a process of this computer."""

    accelerator = "uml"

    def __init__(self, state: UmlState, record: UmlRecord, process: QemuProcess | None) -> None:
        shared = SharedDirectory(state.shared, _SHARED_THERE)
        super().__init__(record.name, shared, state.console, SshChannel(state.ssh))
        self.provenance = {"failed_boots": "; ".join(record.boot_failures)}
        self._process = process

    def close(self) -> None:
        super().close()
        if self._process:
            self._process.close()
            self._process = None

    def _ended(self, *, timeout: float = 0) -> bool:
        return self._process is None or self._process.ended(timeout=timeout)

    def _kill(self) -> None:
        if self._process:
            self._process.kill()

    def _last_words(self) -> str:
        return "its process has ended"


@contextmanager
def uml_machine(
    name: str,
    image: Image,
    kernel: UmlProgram,
    spec: MachineSpec,
    directory: Path,
    progress: Progress,
    *,
    keep: bool = False,
    links: tuple[MachineLinkEnd, ...] = (),
    sees: Path | None = None,
) -> Iterator[UmlMachine]:
    """A machine that has booted ``kernel`` with the userland of ``image`` and takes commands.

    The console and the shared directory stay in ``directory`` after its end.

    :param directory: of this machine alone; files of an earlier machine are removed
    :param keep: leave the machine running, unless an exception ends the context; see
        :func:`attach_uml` and :func:`destroy_uml`
    :param links: to other machines
    :param sees: a directory of this computer that the machine may mount (hostfs) and read, besides
        its shared one: none but for tests
    :raises BootFailed: it did not come up, twice
    :raises ProvisionError: the requested port is in use, or something on this computer is missing
    """
    state = UmlState(directory.absolute(), sees)
    destroy_uml(state.directory)
    kept = False
    try:
        parts = MachineParts(name, image, spec, state.directory, kernel, links=links)
        machine = _provide(parts, state, progress)
        try:
            yield machine
        finally:
            machine.close()
        kept = keep
    finally:
        if not kept:
            destroy_uml(state.directory)


def attach_uml(directory: Path) -> UmlMachine | None:
    """The machine that another process left running here; it may have died."""
    state = UmlState(directory.absolute())
    record = state.read_uml_record()
    if record is None:
        return None
    machine = UmlMachine(state, record, open_process(identity_of(state, record)))
    machine.open_channel_when_needed(timeout=_BOOT_TIMEOUT)
    return machine


def destroy_uml(directory: Path) -> bool:
    """End the machine in ``directory``, even if another process started it; remove its files.

    The console and the shared directory stay.

    :returns: whether there was one
    :raises ProvisionError: a process of it does not end
    """
    state = UmlState(directory.absolute())
    record = state.read_uml_record()
    if record is None:
        return False
    SshChannel(state.ssh).close()
    end_processes(identity_of(state, record))
    for place in _memory_places(state):
        # It is there if who started the machine was killed meanwhile.
        shutil.rmtree(place / _own_name(record), ignore_errors=True)
    state.remove()
    return True


def _provide(parts: _Parts, state: UmlState, progress: Progress) -> UmlMachine:
    if not landlock_version():
        progress.say("this kernel has no Landlock: a machine's can reach all files of this user")
    text = f"starting machine {parts.name} (User Mode Linux {parts.kernel.release})"
    with progress.phase("machine", text), disk_full_reported(state.directory):
        return boot_twice(
            lambda failures: _boot(UmlRecord(parts.name, uuid4(), failures), parts, state),
            lambda: destroy_uml(state.directory),
            state.console,
            progress,
        )


def _boot(record: UmlRecord, parts: _Parts, state: UmlState) -> UmlMachine:
    state.make()
    state.uml.mkdir(exist_ok=True)
    state.write_uml_record(record)
    state.console.write_bytes(b"")
    slirp = Slirp(state.uml)
    do_together(
        slirp.start,
        partial(make_keys, state.ssh, state.shared),
        partial(make_scratch_disk, state.scratch),
        partial(offer_agent, state.shared, _AGENT_PORT),
        partial(UntrustedDirectory(state.shared).put, parts.kernel.modules, "modules"),
    )
    ours, its = socket.socketpair()
    with its, slirp.connect() as network, _own_place(record, parts.spec.memory, state) as memory:
        ends = _Ends(its.fileno(), ours.fileno(), network.fileno())
        _start(record, parts, state, ends, memory)
        machine = UmlMachine(state, record, open_process(identity_of(state, record)))
        try:
            agent = machine.hold_agent(AgentSocket(ours), started=False)
            network.close()
            # slirp4netns takes orders when the machine has opened its interface, so first things
            # first: what is wrong with a boot is told as that.
            wait_until_answering(machine, agent, timeout=_BOOT_TIMEOUT)
            machine.channel.configure(_forward(slirp, parts.spec.ssh_port))
            machine.open_channel_when_needed(timeout=_BOOT_TIMEOUT)
        except BaseException:
            machine.close()
            raise
        return machine


@dataclass(frozen=True)
class _Ends:
    """Descriptors that a machine has of this computer.

    :param agent: its serial port for the agent
    :param ours: the other end of that. The machine has it, too, so that its own end lasts as long
        as itself: at the end of what its serial port reads, the kernel frees an interrupt in an
        interrupt, and says so at length (``chan_interrupt`` in ``arch/um/drivers/chan_kern.c``).
    :param network: its interface that ssh comes by
    """

    agent: int
    ours: int
    network: int


def _argv(record: UmlRecord, parts: _Parts, state: UmlState, ends: _Ends) -> list[str]:
    """The command that is the machine."""
    spec = parts.spec
    paths = {
        "linux": parts.kernel.binary,
        "root": parts.image.root,
        "scratch": state.scratch,
        "shared": state.shared,
    }
    links = {name: state.uml / name for name in paths}
    for name, path in paths.items():
        links[name].unlink(missing_ok=True)
        links[name].symlink_to(path)
    return [
        str(links["linux"]),
        f"mem={spec.memory}M",
        f"ncpus={spec.cpus}",
        # The faster way to run programs; several processors need it.
        "seccomp=on",
        # c: shared, that is, without a lock. A lock would exclude QEMU from the same image.
        f"ubd0rc={links['root']}",
        f"ubd1={links['scratch']}",
        "root=/dev/ubda",
        "rootfstype=erofs",
        "ro",
        f"init={INIT}",
        f"vec0:transport=fd,fd={ends.network}",
        *(
            f"vec{number}:transport=fd,fd={link.descriptor},mac={link.mac},mtu={link.mtu}"
            for number, link in enumerate(parts.links, 1)
        ),
        "con0=null,fd:1",
        "con=null",
        "ssl=null",
        f"ssl0=fd:{ends.agent}",
        "umid=machine",
        f"uml_dir={state.uml}",
        "noreboot",
        "panic=-1",
        "testbed.carrier=uml",
        *_shared_options(links["shared"], state.sees),
        uuid_option(record.uuid),
        *spec.kernel_options,
    ]


def _shared_options(shared: Path, sees: Path | None) -> list[str]:
    """What keeps the machine's hostfs to its shared directory, and tells it where that is."""
    if sees:
        return [f"testbed.shared={shared}"]
    # What is mounted is named from there on.
    return [f"hostfs={shared}", "testbed.shared=/"]


def _start(record: UmlRecord, parts: _Parts, state: UmlState, ends: _Ends, memory: Path) -> None:
    """Start the machine.

    Its kernel is what is tested, and can have this computer's kernel do anything for its process:
    so this is confined to the machine's own files, and has no sockets but those it is given.

    :param memory: the directory for the file that is its memory
    """
    mine = (state.shared, state.scratch, state.uml, memory, _NULL)
    seen = (state.sees,) if state.sees else ()
    reads = (parts.kernel.binary, parts.image.root, *_READ_BY_KERNEL, *seen)
    with state.console.open("ab") as console, _refusal_named(parts.kernel.binary):
        start_confined(
            _argv(record, parts, state, ends),
            # Where the kernel has no seccomp it traces its own processes.
            Confinement(reads, mine, ptrace=True),
            stdout=console,
            stderr=console,
            env={"PATH": os.defpath, "TMPDIR": str(memory)},
            # Also the far ends: a refused frame would make this machine stand still.
            pass_fds=[
                *(ends.agent, ends.ours, ends.network),
                *(fd for link in parts.links for fd in (link.descriptor, link.far) if fd >= 0),
            ],
        )


@contextmanager
def _refusal_named(binary: Path) -> Iterator[None]:
    """Say which program this computer refuses to run, as it does on a mount with noexec."""
    try:
        yield
    except PermissionError as e:
        raise ProvisionError(
            f"User Mode Linux cannot be run from {binary.parent}: {e.strerror}",
            hint="is it mounted noexec? set SMBDIRECT_TESTBED_CACHE to a directory elsewhere",
        ) from e


def require_place(memory: int, state: UmlState) -> Path:
    """Where the machine's memory is going to be.

    :param memory: MiB
    :raises ProvisionError: there is no place for it
    """
    return memory_place(memory, _memory_places(state))


def _memory_places(state: UmlState) -> tuple[Path, ...]:
    """Where the machine's memory may lie: in memory if there is room, else on a disk."""
    return *_MEMORY_PLACES, state.runtime, state.directory, Path("/var/tmp")


@contextmanager
def _own_place(record: UmlRecord, memory: int, state: UmlState) -> Iterator[Path]:
    """A directory for the file of the machine's memory, which has no name there.

    It is the machine's alone, and goes at the end of the context, when the file is open.

    :param memory: MiB
    :raises ProvisionError: there is no place for it
    """
    own = require_place(memory, state) / _own_name(record)
    own.mkdir(mode=0o700)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _own_name(record: UmlRecord) -> str:
    return f"smbdirect-testbed-{record.uuid.hex}"


def _forward(slirp: Slirp, wanted: int) -> int:
    for _ in range(_PORT_ATTEMPTS):
        port = claim_port(wanted)
        if slirp.forward(port):
            return port
    raise ProvisionError(
        "no loopback port could be had for the machine's ssh", detail=last_lines(slirp.log)
    )
