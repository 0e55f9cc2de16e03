"""The libvirt domain of a virtual machine, as XML.

Format: https://libvirt.org/formatdomain.html
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from uuid import UUID
from xml.etree import ElementTree as ET

from smbdirect_testbed.carriers.machine_links import MachineLinkEnd
from smbdirect_testbed.lib.errors import UsageError

_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", _QEMU_NAMESPACE)

_SSH_SLOT = 0x10
"""On the PCI bus; libvirt takes low ones, and links follow."""
_MOST_LINKS = 12
"""The chipset has the last slots itself."""

SHARE_TAG = "testbed"
"""The name under which the guest mounts the shared directory by 9p."""

_TRANSLATED = "48"
"""MiB of translated code that QEMU keeps. Without a limit this is more than the rest of a clone;
see docs/performance.md."""


class Accelerator(StrEnum):
    """The executor of the guest's instructions; the values are libvirt's domain types."""

    KVM = "kvm"
    TCG = "qemu"


class ShareMode(StrEnum):
    """How owners and modes of shared files are kept; the values are libvirt's access modes.

    ``SQUASH`` keeps them as they are, and ``MAPPED`` in extended attributes, which an ordinary
    user may write too.
    """

    SQUASH = "squash"
    MAPPED = "mapped"


@dataclass(frozen=True)
class RamFile:
    """A machine's memory as a file.

    :param shared: the machine's writes go into the file; otherwise written pages are copied, and
        the file stays as it is
    """

    path: Path
    shared: bool


@dataclass(frozen=True)
class Domain:
    """A virtual machine that boots a kernel directly.

    :param memory: MiB of RAM
    :param root: the read-only root file system's image, the guest's first disk
    :param scratch: a raw disk image, the guest's second disk
    :param shared: the directory offered by 9p under the tag :data:`SHARE_TAG`
    :param console: the file that the first serial port is written to
    :param ssh_port: the loopback port that leads to the guest's port 22
    :param mac: of the interface that ssh comes by
    :param agent: the Unix socket that leads to the second serial port
    :param links: each is an interface on a hub; the hub is connected to the socket later
    :param ram: None for memory without a file
    :param incoming: do not boot, but wait for the state of another machine
    """

    name: str
    uuid: UUID
    accelerator: Accelerator
    cpus: int
    memory: int
    kernel: Path
    initramfs: Path
    kernel_options: tuple[str, ...]
    root: Path
    scratch: Path
    shared: Path
    share_mode: ShareMode
    console: Path
    ssh_port: int
    mac: str
    agent: Path
    links: tuple[MachineLinkEnd, ...] = ()
    ram: RamFile | None = None
    incoming: bool = False

    def xml(self) -> str:
        """The domain's description for libvirt."""
        domain = ET.Element("domain", type=self.accelerator)
        _add(domain, "name", text=self.name)
        _add(domain, "uuid", text=str(self.uuid))
        _add(domain, "memory", text=str(self.memory), unit="MiB")
        _add(domain, "vcpu", text=str(self.cpus))
        boot = _add(domain, "os")
        _add(boot, "type", text="hvm", arch="x86_64", machine="q35")
        _add(boot, "kernel", text=str(self.kernel))
        _add(boot, "initrd", text=str(self.initramfs))
        _add(boot, "cmdline", text=" ".join(self.kernel_options))
        features = _add(domain, "features")
        _add(features, "acpi")
        if self.accelerator is Accelerator.TCG:
            _add(_add(features, "tcg"), "tb-cache", text=_TRANSLATED, unit="MiB")
        self._add_cpu(domain)
        # A panic reboots the guest, and a reboot ends it: there is no second boot.
        for event in ("on_poweroff", "on_reboot", "on_crash"):
            _add(domain, event, text="destroy")
        self._add_devices(_add(domain, "devices"))
        _add(domain, "seclabel", type="none")
        _add_qemu_arguments(domain, self._qemu_arguments())
        return ET.tostring(domain, encoding="unicode")

    def _add_cpu(self, domain: ET.Element) -> None:
        kvm = self.accelerator is Accelerator.KVM
        cpu = _add(domain, "cpu", mode="host-passthrough" if kvm else "maximum")
        # On several sockets Linux distrusts the time stamp counter, and reads a timer device
        # through the emulator's global lock whenever it looks at the clock.
        _add(cpu, "topology", sockets="1", cores=str(self.cpus), threads="1")
        if kvm:
            return
        # Five levels of page tables make every emulated TLB miss slower.
        _add(cpu, "feature", policy="disable", name="la57")

    def _add_devices(self, devices: ET.Element) -> None:
        _add(devices, "controller", type="usb", model="none")
        _add(devices, "memballoon", model="none")
        _add_disk(devices, "vda", self.root, read_only=True)
        _add_disk(devices, "vdb", self.scratch, read_only=False)
        share = _add(devices, "filesystem", type="mount", accessmode=self.share_mode)
        _add(share, "source", dir=str(self.shared))
        _add(share, "target", dir=SHARE_TAG)
        serial = _add(devices, "serial", type="file")
        # A clone's file begins with what its template said.
        _add(serial, "source", path=str(self.console), append="on")
        _add(serial, "target", port="0")
        agent = _add(devices, "serial", type="unix")
        _add(agent, "source", mode="bind", path=str(self.agent))
        _add(agent, "target", port="1")
        random = _add(devices, "rng", model="virtio")
        _add(random, "backend", model="random", text="/dev/urandom")

    def _qemu_arguments(self) -> tuple[str, ...]:
        """Options of QEMU that libvirt's XML cannot express."""
        return (
            # Forwarding a port into a user-mode network. The guest gets no other way out.
            "-netdev",
            f"user,id=ssh,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22",
            "-device",
            f"virtio-net-pci,netdev=ssh,mac={self.mac},bus=pcie.0,addr={_SSH_SLOT:#x}",
            *self._wire_arguments(),
            # libvirt lets QEMU pause at the guest's end and then ends it; but no libvirt
            # watches a machine that is kept.
            "-action",
            "shutdown=poweroff",
            *self._ram_arguments(),
            *(("-incoming", "defer") if self.incoming else ()),
        )

    def _wire_arguments(self) -> Iterator[str]:
        if len(self.links) > _MOST_LINKS:
            raise UsageError(
                f"machine {self.name} has {len(self.links)} links to other machines: a virtual"
                f" machine can have {_MOST_LINKS}"
            )
        for number, link in enumerate(self.links, 1):
            yield "-netdev"
            yield f"hubport,id=port{number},hubid={number}"
            yield "-device"
            # Behind the interface for ssh, which has to be the first.
            yield (
                f"virtio-net-pci,netdev=port{number},mac={link.mac},host_mtu={link.mtu}"
                f",bus=pcie.0,addr={_SSH_SLOT + number:#x}"
            )

    def _ram_arguments(self) -> tuple[str, ...]:
        # libvirt chooses the names of memory files itself.
        if self.ram is None:
            return ()
        share = "on" if self.ram.shared else "off"
        path = str(self.ram.path).replace(",", ",,")
        return (
            "-object",
            f"memory-backend-file,id=ram,size={self.memory}M,mem-path={path},share={share}",
            "-machine",
            "memory-backend=ram",
        )


def _add(parent: ET.Element, tag: str, *, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _add_disk(devices: ET.Element, target: str, image: Path, *, read_only: bool) -> None:
    disk = _add(devices, "disk", type="file", device="disk")
    # By default a full disk of this computer would stop the guest in mid-write, silently.
    _add(
        disk,
        "driver",
        name="qemu",
        type="raw",
        cache="unsafe",
        discard="unmap",
        error_policy="report",
    )
    _add(disk, "source", file=str(image))
    _add(disk, "target", dev=target, bus="virtio")
    if read_only:
        _add(disk, "readonly")


def _add_qemu_arguments(domain: ET.Element, arguments: Sequence[str]) -> None:
    commandline = ET.SubElement(domain, f"{{{_QEMU_NAMESPACE}}}commandline")
    for argument in arguments:
        ET.SubElement(commandline, f"{{{_QEMU_NAMESPACE}}}arg", value=argument)
