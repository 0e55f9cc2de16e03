"""Starting a virtual machine: by booting an image, or as a clone of a template."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import UUID

from smbdirect_testbed.carriers.boot import (
    claim_port,
    do_together,
    make_scratch_disk,
    wait_until_ready,
)
from smbdirect_testbed.carriers.carrier import MachineParts
from smbdirect_testbed.carriers.machine_files import Start, VmRecord, VmState
from smbdirect_testbed.carriers.machine_process import Identity, open_process
from smbdirect_testbed.carriers.vm.domain_xml import Accelerator, Domain, RamFile, ShareMode
from smbdirect_testbed.carriers.vm.libvirt_embed import StartFailed, start_domain
from smbdirect_testbed.carriers.vm.machine import VmMachine
from smbdirect_testbed.carriers.vm.sparse_copy import copy_sparse
from smbdirect_testbed.carriers.vm.template import Template
from smbdirect_testbed.lib import cancel, paths
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.machine.agent_connection import AgentSocket
from smbdirect_testbed.machine.agent_program import offer_agent
from smbdirect_testbed.machine.ssh import make_keys, offered_keys

KERNEL_OPTIONS = ("console=ttyS0", "panic=-1", "quiet")
"""Options of every machine, before those of its spec."""
BOOT_TIMEOUT = {Accelerator.KVM: 60.0, Accelerator.TCG: 120.0}
"""Seconds from the start of QEMU to the first command."""
_PORT_TAKEN = "Could not set up host forwarding rule"
_PORT_ATTEMPTS = 5
_ENTROPY = 64
_AGENT_PORT = "/dev/ttyS1"


VmParts = MachineParts[None]


class CloneFailed(ProvisionError):
    """A machine did not start from a template; the template may be the cause."""


def boot(
    record: VmRecord, parts: VmParts, state: VmState, *, ram: RamFile | None = None
) -> VmMachine:
    """Boot a machine.

    :param ram: the file for its memory; None for memory without a file
    :raises BootFailed: it did not come up
    """
    state.make()
    state.console.write_bytes(b"")
    do_together(
        partial(make_keys, state.ssh, state.shared),
        partial(make_scratch_disk, state.scratch),
        partial(offer_agent, state.shared, _AGENT_PORT),
    )
    record = _start(record, parts, state, ram, None)
    with _watched(record, state) as machine:
        # Before the start: words of the agent without a reader are lost.
        try:
            machine.hold_agent(AgentSocket.to(state.agent), started=False)
        except ProvisionError:
            # If it has died already, this says why.
            wait_until_ready(machine, timeout=BOOT_TIMEOUT[record.accelerator])
            raise
        wait_until_ready(machine, timeout=BOOT_TIMEOUT[record.accelerator])
        machine.channel.open(timeout=BOOT_TIMEOUT[record.accelerator])
    return machine


def clone(record: VmRecord, parts: VmParts, template: Template, state: VmState) -> VmMachine:
    """Start a machine as a copy of a template.

    It gets its own clock, random numbers, host key and MAC before it can be reached.

    :raises CloneFailed: it did not start, or does not answer
    """
    state.make()
    shutil.copyfile(template.console, state.console)
    copy_sparse(template.scratch, state.scratch)
    record = replace(record, start=Start.CLONE, template=template.digest)
    ram = RamFile(template.ram, shared=False)
    try:
        with ThreadPoolExecutor() as pool:
            keys = pool.submit(cancel.carried(partial(make_keys, state.ssh, state.shared)))
            record = _start(record, parts, state, ram, template.state)
            keys.result()
    except StartFailed as e:
        raise CloneFailed(e.message, hint=e.hint, detail=e.detail) from e
    if not template.is_in_place():
        raise CloneFailed("the template was replaced while it was cloned")
    with _watched(record, state) as machine:
        machine.prepared = template.prepared
        try:
            _thaw(machine, state)
        except ProvisionError as e:
            raise CloneFailed(e.message, hint=e.hint, detail=e.detail) from e
        machine.open_channel_when_needed(timeout=BOOT_TIMEOUT[record.accelerator])
    return machine


def _thaw(machine: VmMachine, state: VmState) -> None:
    """Turn a copy of a template into a machine of its own."""
    machine.hold_agent(AgentSocket.to(state.agent), started=True).thaw(
        time_now=time.time(),
        entropy=secrets.token_hex(_ENTROPY),
        mac=machine.record.mac,
        keys=offered_keys(state.ssh),
    )


@contextmanager
def _watched(record: VmRecord, state: VmState) -> Iterator[VmMachine]:
    """The machine that was started; closed if an exception ends the context."""
    machine = VmMachine(state, record, open_process(Identity(record.uuid, state.libvirt)))
    machine.channel.configure(record.ssh_port)
    try:
        yield machine
    except BaseException:
        machine.close()
        raise


def _start(
    record: VmRecord,
    parts: VmParts,
    state: VmState,
    ram: RamFile | None,
    incoming: Path | None,
) -> VmRecord:
    """Start QEMU; returns the completed record.

    :param incoming: the saved state to continue from
    """
    record = replace(record, mac=_mac(record.uuid))
    for _ in range(_PORT_ATTEMPTS):
        record = replace(record, ssh_port=claim_port(parts.spec.ssh_port))
        state.write_record(record)
        domain = Domain(
            name=record.name,
            uuid=record.uuid,
            accelerator=record.accelerator,
            cpus=parts.spec.cpus,
            memory=parts.spec.memory,
            kernel=parts.image.kernel,
            initramfs=parts.image.initramfs,
            kernel_options=(*KERNEL_OPTIONS, *parts.spec.kernel_options),
            root=parts.image.root,
            scratch=state.scratch,
            shared=state.shared,
            share_mode=_share_mode(state.shared),
            console=state.console,
            ssh_port=record.ssh_port,
            mac=record.mac,
            agent=state.agent,
            links=parts.links,
            ram=ram,
            incoming=incoming is not None,
        )
        try:
            versions = start_domain(
                state.libvirt,
                domain.xml(),
                record.uuid,
                paths.cache() / "libvirt",
                state=incoming,
                wires=[link.descriptor for link in parts.links],
            )
        except StartFailed as e:
            # Another process took the port between our check and QEMU's.
            if _PORT_TAKEN in e.message:
                continue
            raise
        record = replace(record, libvirt=versions.libvirt, qemu=versions.qemu)
        state.write_record(record)
        return record
    raise ProvisionError("no free loopback port was found for the machine's ssh")


def _mac(uuid: UUID) -> str:
    """A MAC with the prefix that QEMU's manual gives to emulated machines."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in uuid.bytes[-3:])


def _share_mode(directory: Path) -> ShareMode:
    """The share mode in which the machine's root is root in a directory."""
    if os.geteuid() == 0:
        return ShareMode.SQUASH
    try:
        os.setxattr(directory, "user.testbed", b"")
        os.removexattr(directory, "user.testbed")
    except OSError:
        # Then all files are this user's for the machine too, and cannot be given away.
        return ShareMode.SQUASH
    return ShareMode.MAPPED
