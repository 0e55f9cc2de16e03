"""The domain given to libvirt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import UUID
from xml.etree import ElementTree as ET

import pytest

from smbdirect_testbed.carriers.machine_links import MachineLinkEnd
from smbdirect_testbed.carriers.vm.domain_xml import Accelerator, Domain, RamFile, ShareMode
from smbdirect_testbed.lib.errors import UsageError

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"


@pytest.fixture
def domain() -> Domain:
    return Domain(
        name="m",
        uuid=UUID(int=1),
        accelerator=Accelerator.TCG,
        cpus=2,
        memory=2048,
        kernel=Path("/i/kernel"),
        initramfs=Path("/i/initramfs"),
        kernel_options=("console=ttyS0", "panic=-1"),
        root=Path("/i/root"),
        scratch=Path("/s/scratch.img"),
        shared=Path("/s/shared & <mine>"),
        share_mode=ShareMode.MAPPED,
        console=Path("/s/console.log"),
        ssh_port=2222,
        mac="52:54:00:00:00:01",
        agent=Path("/r/agent.sock"),
    )


def test_size_and_kernel(domain: Domain) -> None:
    xml = ET.fromstring(domain.xml())
    assert xml.findtext("memory") == "2048"
    assert xml.findtext("vcpu") == "2"
    assert xml.findtext("os/cmdline") == "console=ttyS0 panic=-1"


def test_the_processor_follows_the_accelerator(domain: Domain) -> None:
    emulated = ET.fromstring(domain.xml())
    native = ET.fromstring(replace(domain, accelerator=Accelerator.KVM).xml())
    assert (emulated.get("type"), native.get("type")) == ("qemu", "kvm")
    modes = [xml.find("cpu").get("mode") for xml in (emulated, native)]  # type: ignore[union-attr]
    assert modes == ["maximum", "host-passthrough"]
    assert emulated.findtext("features/tcg/tb-cache")
    assert native.find("features/tcg") is None


def test_only_the_root_disk_is_read_only(domain: Domain) -> None:
    disks = ET.fromstring(domain.xml()).findall("devices/disk")
    found = [
        (d.find("source").get("file"), d.find("readonly") is not None)  # type: ignore[union-attr]
        for d in disks
    ]
    assert found == [("/i/root", True), ("/s/scratch.img", False)]


def test_odd_characters_in_paths_survive(domain: Domain) -> None:
    source = ET.fromstring(domain.xml()).find("devices/filesystem/source")
    assert source is not None
    assert source.get("dir") == "/s/shared & <mine>"


def test_ssh_is_on_loopback_and_nothing_else_gets_in_or_out(domain: Domain) -> None:
    xml = ET.fromstring(domain.xml())
    arguments = [a.get("value") or "" for a in xml.findall(f"{_QEMU}commandline/{_QEMU}arg")]
    (network,) = (a for a in arguments if a.startswith("user,"))
    assert "hostfwd=tcp:127.0.0.1:2222-:22" in network.split(",")
    assert "restrict=on" in network.split(",")
    assert not any("memory" in a or a == "-incoming" for a in arguments)


def test_every_end_of_the_guest_ends_the_machine(domain: Domain) -> None:
    xml = ET.fromstring(domain.xml())
    assert {xml.findtext(e) for e in ("on_poweroff", "on_reboot", "on_crash")} == {"destroy"}


@pytest.mark.parametrize(("shared", "share"), [(True, "on"), (False, "off")])
def test_memory_as_a_file(domain: Domain, shared: bool, share: str) -> None:
    clone = replace(domain, ram=RamFile(Path("/c/a,b/ram"), shared), incoming=not shared)
    arguments = [a.get("value") or "" for a in ET.fromstring(clone.xml()).iter(f"{_QEMU}arg")]
    (memory,) = (a for a in arguments if a.startswith("memory-backend-file,"))
    assert memory == f"memory-backend-file,id=ram,size=2048M,mem-path=/c/a,,b/ram,share={share}"
    assert arguments[arguments.index("-machine") + 1] == "memory-backend=ram"
    assert ("-incoming" in arguments) is not shared


def test_the_agent_has_the_second_serial_port(domain: Domain) -> None:
    first, second = ET.fromstring(domain.xml()).findall("devices/serial")
    assert (first.get("type"), second.get("type")) == ("file", "unix")
    assert second.find("source").get("path") == "/r/agent.sock"  # type: ignore[union-attr]
    # A clone's console begins with what its template said.
    assert first.find("source").get("append") == "on"  # type: ignore[union-attr]


def _values(domain: Domain) -> list[str]:
    return [a.get("value") or "" for a in ET.fromstring(domain.xml()).iter(f"{_QEMU}arg")]


def test_each_wire_is_an_interface_on_a_hub_of_its_own(domain: Domain) -> None:
    ends = (
        MachineLinkEnd("02:00:00:00:00:01", 9000, 7, 9),
        MachineLinkEnd("02:00:00:00:00:02", 1500, 8, 10),
    )
    values = _values(replace(domain, links=ends))
    assert [v for v in values if v.startswith("hubport,")] == [
        "hubport,id=port1,hubid=1",
        "hubport,id=port2,hubid=2",
    ]
    first, second = (v for v in values if "netdev=port" in v)
    assert "netdev=port1,mac=02:00:00:00:00:01,host_mtu=9000,bus=pcie.0,addr=0x11" in first
    assert "netdev=port2,mac=02:00:00:00:00:02,host_mtu=1500,bus=pcie.0,addr=0x12" in second
    # The interface for ssh stays where it is: a machine's first.
    assert any("netdev=ssh" in v and v.endswith("addr=0x10") for v in values)


def test_the_number_of_wires_has_a_limit_that_is_told(domain: Domain) -> None:
    ends = tuple(MachineLinkEnd(f"02:00:00:00:00:{n:02x}", 1500, n, 99) for n in range(13))
    assert sum("netdev=port" in v for v in _values(replace(domain, links=ends[:12]))) == 12
    with pytest.raises(UsageError, match=r"^machine m has 13 links to other machines"):
        replace(domain, links=ends).xml()
