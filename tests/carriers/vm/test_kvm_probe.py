"""The verdict on KVM; what it is depends on the computer, so the reasons are tested."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from smbdirect_testbed.carriers.vm import kvm_probe


def test_the_verdict_comes_soon_and_has_a_reason() -> None:
    begun = time.monotonic()
    verdict = kvm_probe.probe()
    assert time.monotonic() - begun < 3
    assert verdict.reason


def test_no_device(tmp_path: Path) -> None:
    verdict = kvm_probe.probe(tmp_path / "kvm")
    assert verdict == kvm_probe.KvmVerdict(False, f"there is no {tmp_path / 'kvm'}")


def test_a_device_that_is_something_else() -> None:
    verdict = kvm_probe.probe(Path("/dev/null"))
    assert not verdict.works
    assert verdict.reason == "/dev/null: Inappropriate ioctl for device"


def test_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert kvm_probe.probe().reason == "this computer is aarch64, the images are x86_64"


def test_a_guest_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm_probe, "_run_guest", lambda device: time.sleep(60))
    begun = time.monotonic()
    verdict = kvm_probe.probe(Path("/dev/null"), deadline=0.2)
    assert time.monotonic() - begun < 5
    assert not verdict.works
    assert "did not end in 0.2 s" in verdict.reason


def test_a_probe_that_crashes_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(device: Path) -> None:
        raise RuntimeError

    monkeypatch.setattr(kvm_probe, "_run_guest", crash)
    assert kvm_probe.probe(Path("/dev/null")) == kvm_probe.KvmVerdict(False, "the probe died")


def test_a_guest_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm_probe, "_run_guest", lambda device: None)
    verdict = kvm_probe.probe(Path("/dev/null"))
    assert verdict.works
    assert verdict.reason.startswith("a test guest ran in ")
