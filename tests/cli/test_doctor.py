"""What the checks say of computers that lack something."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from smbdirect_testbed.carriers.trial import Trial, try_vm
from smbdirect_testbed.carriers.vm import trial as vm_trial
from smbdirect_testbed.carriers.vm.kvm_probe import KvmVerdict
from smbdirect_testbed.carriers.vm.trial import trial_kernel
from smbdirect_testbed.cli import doctor
from smbdirect_testbed.cli.doctor import Status

_GIB = 1 << 30


def test_every_finding_that_is_not_ok_has_a_fix() -> None:
    checks = doctor.diagnose()
    assert {
        "Python",
        "KVM",
        "mmdebstrap",
        "disk space",
        "memory",
        "virtual machine",
        "User Mode Linux",
    } <= {c.name for c in checks}
    assert [c.name for c in checks if c.status is not Status.OK and not c.fix] == []


def test_python() -> None:
    assert doctor.check_python((3, 11, 0)).status is Status.OK
    assert doctor.check_python((3, 10, 12)).status is Status.FAIL


def test_kvm_that_does_not_work_is_no_failure() -> None:
    check = doctor.check_kvm(KvmVerdict(False, "guests are emulated"))
    assert (check.status, check.detail) == (Status.WARN, "guests are emulated")
    assert doctor.check_kvm(KvmVerdict(True, "fine")).status is Status.OK


def test_kvm_that_only_lacks_a_permission() -> None:
    check = doctor.check_kvm(KvmVerdict(False, "/dev/kvm may not be opened by this user"))
    assert "usermod --append --groups kvm" in check.fix


def test_a_missing_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program, path: None)
    check = doctor.check_tool(doctor._Tool("mmdebstrap", "mmdebstrap", "builds images"))
    assert check.status is Status.FAIL
    assert check.detail == "not found; it builds images"
    assert check.fix.endswith("apt-get install mmdebstrap")


def test_tools_outside_of_a_users_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "/usr/sbin" in doctor._search_path().split(":")


def test_the_libvirt_driver(tmp_path: Path) -> None:
    assert doctor.check_libvirt_driver(tmp_path).status is Status.WARN
    driver = tmp_path / "x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so"
    driver.parent.mkdir(parents=True)
    driver.touch()
    assert doctor.check_libvirt_driver(tmp_path).status is Status.OK


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", Status.FAIL),
        ("other:100000:65536\n", Status.FAIL),
        ("someone:100000:1000\n", Status.FAIL),
        ("someone:100000:65536\n", Status.OK),
        ("1001:100000:65536\n", Status.OK),
        ("# a comment\nsomeone:100000:65536\n", Status.OK),
    ],
)
def test_subordinate_ids(tmp_path: Path, text: str, status: Status) -> None:
    file = tmp_path / "subuid"
    file.write_text(text)
    assert doctor.check_subordinate_ids(file, "someone", 1001).status is status


def test_subordinate_ids_of_a_computer_without_any(tmp_path: Path) -> None:
    check = doctor.check_subordinate_ids(tmp_path / "subgid", "someone", 1001)
    assert check.status is Status.FAIL
    assert check.fix == "sudo usermod --add-subgids 165536-231071 someone"


@pytest.mark.parametrize(("gib", "status"), [(100, Status.OK), (8, Status.WARN), (2, Status.FAIL)])
def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: int, status: Status) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, gib * _GIB))
    check = doctor.check_disk(tmp_path / "not" / "made" / "yet")
    assert check.status is status
    assert check.detail.startswith(f"{gib}.0 GiB free")


@pytest.mark.parametrize(("gib", "status"), [(16, Status.OK), (3, Status.WARN), (1, Status.FAIL)])
def test_memory(gib: float, status: Status) -> None:
    assert doctor.check_memory(gib).status is status


def test_a_map_of_ids_that_is_refused() -> None:
    refusal = "echo 'newuidmap: write to uid_map failed: Operation not permitted' >&2; exit 25"
    check = doctor.check_id_map(["sh", "-c", refusal])
    assert check.status is Status.FAIL
    assert check.detail.endswith("newuidmap: write to uid_map failed: Operation not permitted")
    assert "setcap cap_setuid=ep" in check.fix
    assert doctor.check_id_map(["true"]).status is Status.OK


WORKS, REFUSED, NOT_BUILT = (
    Trial(True, "it ran"),
    Trial(False, "libvirt refused", "look"),
    Trial(None, "not built yet"),
)


@pytest.mark.parametrize(
    ("vm", "uml", "expected"),
    [
        (WORKS, WORKS, [Status.OK, Status.OK]),
        (WORKS, NOT_BUILT, [Status.OK, Status.OK]),
        (REFUSED, WORKS, [Status.WARN, Status.OK]),
        (REFUSED, NOT_BUILT, [Status.WARN, Status.OK]),
        (WORKS, REFUSED, [Status.OK, Status.WARN]),
        (REFUSED, REFUSED, [Status.FAIL, Status.FAIL]),
    ],
)
def test_one_carrier_is_enough(vm: Trial, uml: Trial, expected: list[Status]) -> None:
    checks = list(doctor.check_carriers(vm, uml))
    assert [c.status for c in checks] == expected
    assert [c.detail for c in checks] == [vm.found, uml.found]


def test_a_fix_does_not_lead_back_to_doctor() -> None:
    vm = Trial(False, "libvirt refused", "see smbdirect-testbed doctor")
    uml = Trial(False, "slirp4netns did not start")
    assert {c.fix for c in doctor.check_carriers(vm, uml)} == {
        "see what is missing above; one of the two has to work"
    }
    alone = next(doctor.check_carriers(vm, WORKS))
    assert alone.fix.endswith("runs go on with User Mode Linux")


def test_what_a_run_would_start_is_started() -> None:
    tried = try_vm()
    assert (tried.works, tried.hint) == (True, "")
    assert tried.found.startswith("a domain ran in QEMU ")


def test_a_domain_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "qemu-system-x86_64").symlink_to("/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    tried = try_vm()
    assert tried.works is False
    assert "libvirt could not start the machine" in tried.found
    assert tried.hint


def test_a_processor_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_trial, "trial_kernel", lambda: trial_kernel().replace(b"\xee", b"\x90"))
    monkeypatch.setattr(vm_trial, "_TIMEOUT", 3.0)
    tried = try_vm()
    assert tried.works is False
    assert "to run its first instructions" in tried.found
