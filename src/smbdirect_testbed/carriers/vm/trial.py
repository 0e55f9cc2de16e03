"""Starting what a virtual machine is, for a moment, to see whether one can be started here.

It has no image: its kernel is a few instructions that write a byte to the console.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from smbdirect_testbed.carriers.boot import claim_port
from smbdirect_testbed.carriers.machine_files import VmRecord, VmState
from smbdirect_testbed.carriers.machine_process import Identity, end_processes
from smbdirect_testbed.carriers.vm import kvm_probe
from smbdirect_testbed.carriers.vm.domain_xml import Accelerator, Domain, ShareMode
from smbdirect_testbed.carriers.vm.libvirt_embed import Versions, start_domain
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.wait import wait_until

_MEMORY = 64
_DISK = 1 << 20
_TIMEOUT = 30.0
_HELLO = b"K"

_MAGIC = 0x1BADB002
_HAS_ADDRESSES = 1 << 16
_LOAD_ADDRESS = 0x100000
_LEAST_SIZE = 8192
"""In whose first part a header is looked for."""


@dataclass(frozen=True)
class TriedDomain:
    """What carried a domain that ran.

    :param accelerator: with which it ran
    """

    versions: Versions
    accelerator: Accelerator


def try_domain(directory: Path) -> TriedDomain:
    """Start a domain of libvirt's, wait until its processor has done something, and end it.

    :param directory: an empty one
    :raises ProvisionError: it cannot be started, or does nothing
    """
    state = VmState(directory.absolute())
    accelerator = Accelerator.KVM if kvm_probe.probe().works else Accelerator.TCG
    record = VmRecord("trial", uuid4(), accelerator, "", claim_port(0))
    kernel, disk = directory / "kernel", directory / "disk"
    kernel.write_bytes(trial_kernel())
    disk.write_bytes(bytes(_DISK))
    try:
        state.make()
        state.scratch.write_bytes(bytes(_DISK))
        state.console.touch()
        domain = Domain(
            name=record.name,
            uuid=record.uuid,
            accelerator=accelerator,
            cpus=1,
            memory=_MEMORY,
            kernel=kernel,
            initramfs=disk,
            kernel_options=(),
            root=disk,
            scratch=state.scratch,
            shared=state.shared,
            share_mode=ShareMode.SQUASH,
            console=state.console,
            ssh_port=record.ssh_port,
            mac="52:54:00:00:00:01",
            agent=state.agent,
        )
        capabilities = paths.cache() / "libvirt"
        versions = start_domain(state.libvirt, domain.xml(), record.uuid, capabilities)
        wait_until(
            lambda: _HELLO in state.console.read_bytes(),
            "a virtual machine to run its first instructions",
            timeout=_TIMEOUT,
            interval=0.02,
        )
    finally:
        end_processes(Identity(record.uuid, state.libvirt))
        state.remove()
    return TriedDomain(versions, accelerator)


def trial_kernel() -> bytes:
    """A kernel in Multiboot's format, which QEMU loads: it writes a byte to the first serial port.

    Format: https://www.gnu.org/software/grub/manual/multiboot/multiboot.html
    """
    checksum = -(_MAGIC + _HAS_ADDRESSES) & 0xFFFFFFFF
    header_size = struct.calcsize("<8I")
    # The addresses of the header, of what is loaded, of its end (all of the file) and of its zeros
    # (none); where to begin.
    addresses = (_LOAD_ADDRESS, _LOAD_ADDRESS, 0, 0, _LOAD_ADDRESS + header_size)
    header = struct.pack("<8I", _MAGIC, _HAS_ADDRESSES, checksum, *addresses)
    code = (
        b"\x66\xba\xf8\x03"  # mov dx, 0x3f8
        b"\xb0" + _HELLO + b"\xee"  # mov al, 'K'; out dx, al
        b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp to the hlt
    )
    return (header + code).ljust(_LEAST_SIZE, b"\0")
