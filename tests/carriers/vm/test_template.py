"""Templates in the cache: what they are made of, and how a broken one is noticed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from smbdirect_testbed.carriers.carrier import TemplatePlan
from smbdirect_testbed.carriers.machine_files import VmRecord, VmState
from smbdirect_testbed.carriers.vm import provide as vm
from smbdirect_testbed.carriers.vm import template as templates
from smbdirect_testbed.carriers.vm.domain_xml import Accelerator
from smbdirect_testbed.carriers.vm.machine import VmMachine
from smbdirect_testbed.carriers.vm.sparse_copy import checksum, copy_sparse
from smbdirect_testbed.carriers.vm.start import CloneFailed, VmParts
from smbdirect_testbed.carriers.vm.template import TemplateBroken
from smbdirect_testbed.config.spec import MachineSpec
from smbdirect_testbed.environment import housekeeping
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.lib import cache
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.progress import Progress

_DIGEST = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMBDIRECT_TESTBED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def progress() -> Progress:
    return Progress(quiet=True)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    files = {name: tmp_path / name for name in ("root", "kernel", "initramfs")}
    for file in files.values():
        file.write_text("1")
    return Image(read_recipe("trixie"), "d", tmp_path, **files, kernel_release="7.3", packages={})


def _fill(directory: Path) -> None:
    with (directory / "ram").open("wb") as ram:
        ram.truncate(1 << 20)
        ram.seek(300_000)
        ram.write(b"memory")
    for name in ("state", "scratch.img", "console.log"):
        (directory / name).write_text(name)
    templates.write_manifest(directory, _DIGEST, {"driver": "x"}, ["it did not boot"])


def test_a_template_is_made_once(progress: Progress) -> None:
    made: list[Path] = []

    def make(directory: Path) -> None:
        made.append(directory)
        _fill(directory)

    first = templates.provide(_DIGEST, make, progress)
    again = templates.provide(_DIGEST, make, progress)
    assert len(made) == 1
    assert first == again
    assert first.prepared == {"driver": "x"}
    assert first.boot_failures == ("it did not boot",)
    assert first.is_in_place()


def _overwrite(directory: Path) -> None:
    """One byte, where nobody looks, and no other size."""
    with (directory / "ram").open("r+b") as ram:
        ram.seek(300_001)
        ram.write(b"E")


def _cut(directory: Path) -> None:
    """Zeros at the end, which no checksum counts."""
    with (directory / "ram").open("r+b") as ram:
        ram.truncate(1 << 19)


def _remove(directory: Path) -> None:
    (directory / "scratch.img").unlink()


def _without_manifest(directory: Path) -> None:
    (directory / "template.json").unlink()


def _half_a_manifest(directory: Path) -> None:
    manifest = directory / "template.json"
    manifest.write_text(manifest.read_text()[:50])


@pytest.mark.parametrize("damage", [_overwrite, _cut, _remove, _without_manifest, _half_a_manifest])
def test_a_broken_template_is_noticed_and_made_anew(
    damage: Callable[[Path], None], progress: Progress, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = templates.provide(_DIGEST, _fill, progress)
    damage(broken.directory)
    with pytest.raises(TemplateBroken):
        templates.read(broken.directory)
    mended = templates.provide(_DIGEST, _fill, Progress())
    assert "is broken" in capfd.readouterr().err
    assert templates.read(mended.directory) == mended


def test_content_is_read_only_when_something_touched_it(
    progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = templates.provide(_DIGEST, _fill, progress).directory
    read: list[Path] = []

    def watched(file: Path) -> int:
        read.append(file)
        return checksum(file)

    monkeypatch.setattr(templates, "checksum", watched)
    templates.read(directory)
    assert read == []
    os.utime(directory / "ram")
    templates.read(directory)
    assert len(read) == 4


def test_a_failure_leaves_no_template(cache_directory: Path, progress: Progress) -> None:
    def fail(directory: Path) -> None:
        (directory / "ram").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ProvisionError, match="no space left on the disk"):
        templates.provide(_DIGEST, fail, progress)
    assert list((cache_directory / "templates").iterdir()) == []


def test_two_that_need_one_template_make_it_once(progress: Progress) -> None:
    made: list[Path] = []

    def slowly(directory: Path) -> None:
        made.append(directory)
        time.sleep(0.3)
        _fill(directory)

    with ThreadPoolExecutor(4) as threads:
        provided = [threads.submit(templates.provide, _DIGEST, slowly, progress) for _ in range(4)]
    assert {template.result().digest for template in provided} == {_DIGEST}
    assert len(made) == 1
    assert templates.read(made[0].parent / _DIGEST[:16]).digest == _DIGEST


def test_a_discarded_template_is_gone_and_another_in_its_place_is_not(progress: Progress) -> None:
    old = templates.provide(_DIGEST, _fill, progress)
    old.discard(progress)
    assert not old.directory.exists()
    new = templates.provide(_DIGEST, _fill, progress)
    replaced = replace(old, inode=new.inode + 1)
    assert not replaced.is_in_place()
    replaced.discard(progress)
    assert new.is_in_place()


def test_old_templates_go(cache_directory: Path, progress: Progress) -> None:
    for number in range(13):
        found = templates.provide(cache.digest([str(number)]), _fill, progress)
        os.utime(found.directory, (number, number))
    names = {p.name for p in (cache_directory / "templates").iterdir()}
    assert names == {cache.digest([str(n)])[:16] for n in range(3, 13)}


def test_clean_removes_templates(cache_directory: Path, progress: Progress) -> None:
    templates.provide(_DIGEST, _fill, progress)
    waste = [w for w in housekeeping.find_waste(cache=True) if w.path.name == "templates"]
    assert len(waste) == 1
    waste[0].remove()
    assert not (cache_directory / "templates").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(95, "Operation not supported"), "[Errno 95] Operation not supported"),
        (CloneFailed("it does not answer"), "it does not answer"),
        (None, "a template needs 300001 GiB in "),
    ],
)
def test_what_cannot_be_cloned_is_booted_and_says_why(
    error: Exception | None,
    reason: str,
    image: Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    booted: list[VmRecord] = []

    def boot(record: VmRecord, parts: VmParts, state: VmState, **_: object) -> VmMachine:
        booted.append(record)
        return VmMachine(state, record, None)

    def provide(*_: object) -> object:
        raise error or AssertionError

    monkeypatch.setattr(vm, "boot", boot)
    monkeypatch.setattr(vm, "_GIB", 300_000.0)
    if error:
        monkeypatch.setattr(templates, "provide", provide)
    spec = MachineSpec(memory=1024)
    plan = TemplatePlan((), lambda _: {})
    with vm.vm_machine("m", image, spec, tmp_path / "m", Progress(), plan=plan) as machine:
        assert machine.provenance["failed_clone"].startswith(reason)
        assert machine.provenance["start"] == "cold"
    assert len(booted) == 1
    assert f"the machine cannot be cloned: {reason}" in capfd.readouterr().err


def _key(image: Image, spec: MachineSpec, *parts: str, accelerator: str = "qemu") -> str:
    plan = TemplatePlan(parts, lambda _: {})
    return templates.key(plan, image, spec, Accelerator(accelerator), ("quiet",))


def test_what_a_template_is_made_of(image: Image, tmp_path: Path) -> None:
    spec = MachineSpec()
    key = _key(image, spec, "driver")
    assert key == _key(image, spec, "driver")
    assert key == _key(image, MachineSpec(ssh_port=2222), "driver")
    others = [
        _key(image, spec, "another driver"),
        _key(image, MachineSpec(memory=1024), "driver"),
        _key(image, MachineSpec(kernel_options=("nokaslr",)), "driver"),
        _key(replace(image, digest="e"), spec, "driver"),
        _key(image, spec, "driver", accelerator="kvm"),
    ]
    # The same recipe and packages, and yet another file: blocks of it are in memory.
    os.utime(image.root, (1, 1))
    others.append(_key(image, spec, "driver"))
    assert len({key, *others}) == 7


def test_a_sparse_copy(tmp_path: Path) -> None:
    source, copy = tmp_path / "a", tmp_path / "b"
    with source.open("wb") as file:
        file.write(b"begin" + bytes(200_000))
        file.seek(5 << 20)
        file.write(b"middle")
        file.truncate(9_000_001)
    crc = copy_sparse(source, copy)
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_blocks * 512 < 1 << 20
    full = tmp_path / "c"
    full.write_bytes(source.read_bytes())
    assert crc == checksum(source) == checksum(full)
    with full.open("r+b") as file:
        file.seek(7_000_000)
        file.write(b"x")
    assert checksum(full) != crc


def test_equal_blocks_at_other_places_are_other_content(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"x" * 65536 + bytes(65536))
    b.write_bytes(bytes(65536) + b"x" * 65536)
    assert checksum(a) != checksum(b)


def test_nothing_but_a_hole(tmp_path: Path) -> None:
    (tmp_path / "a").open("wb").truncate(1 << 20)
    assert copy_sparse(tmp_path / "a", tmp_path / "b") == 0
    assert (tmp_path / "b").stat().st_size == 1 << 20
