"""Clones of a template: each a machine of its own, and never worse than a cold start."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.machines.conftest import Testbed

from smbdirect_testbed.carriers.carrier import TemplatePlan
from smbdirect_testbed.carriers.machine_files import VmState
from smbdirect_testbed.carriers.machine_process import Identity, open_process
from smbdirect_testbed.carriers.vm.provide import VmMachine, vm_machine
from smbdirect_testbed.config.spec import DriverSpec, MachineSpec
from smbdirect_testbed.image.image import Image, provide_image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel.build import provide_driver
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.machine.kernel_log import KernelLog
from smbdirect_testbed.machine.loaded_driver import LoadedDriver
from smbdirect_testbed.machine.machine import Machine

pytestmark = pytest.mark.vm

_SMALL = MachineSpec(memory=1024)
_NAMES = ("one", "two")


@pytest.fixture(scope="module")
def image() -> Image:
    return provide_image(read_recipe("trixie"), Progress())


@pytest.fixture(scope="module")
def driver(image: Image) -> TemplatePlan:
    """Loads the driver, and leaves a file on the disk."""
    built = provide_driver(DriverSpec(), image, Progress())

    def prepare(machine: Machine) -> Mapping[str, str]:
        LoadedDriver(machine, built).load()
        machine.run(["sh", "-c", "echo kept >/srv/file; cat /proc/sys/kernel/random/uuid"])
        return {"driver": built.digest}

    return TemplatePlan(("tests", built.digest), prepare)


@pytest.fixture(scope="module")
def clones(
    image: Image, driver: TemplatePlan, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[VmMachine]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                vm_machine(
                    name, image, _SMALL, tmp_path_factory.mktemp(name), Progress(), plan=driver
                )
            )
            for name in _NAMES
        ]


def _each(clones: list[VmMachine], script: str) -> list[str]:
    return [machine.run(["sh", "-c", script]).stdout.strip() for machine in clones]


def test_they_are_clones(clones: list[VmMachine]) -> None:
    assert [m.provenance["start"] for m in clones] == ["clone", "clone"]
    assert len({m.provenance["template"] for m in clones}) == 1
    assert [m.provenance["failed_clone"] for m in clones] == ["", ""]


def test_the_modules_are_ours(clones: list[VmMachine], image: Image) -> None:
    built = provide_driver(DriverSpec(), image, Progress())
    for machine in clones:
        LoadedDriver(machine, built).check()


def test_the_clock_is_right(clones: list[VmMachine]) -> None:
    for machine in clones:
        before = time.time()
        there = float(machine.run(["date", "+%s.%N"]).stdout)
        assert before - 1 < there < time.time() + 1


def test_host_keys_differ_and_are_those_of_the_run(clones: list[VmMachine]) -> None:
    # That commands run at all shows that the key is the expected one: ssh is strict about it.
    scan = "ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | tail -1 | cut -d' ' -f3"
    offered = _each(clones, scan)
    assert len(set(offered)) == 2
    for machine, key in zip(clones, offered, strict=True):
        known = machine.channel.config.with_name("known_hosts").read_text()
        assert key in known.split()


def test_random_numbers_differ(clones: list[VmMachine]) -> None:
    for source in ("uuid", "boot_id"):
        assert len(set(_each(clones, f"cat /proc/sys/kernel/random/{source}"))) == 2
    assert len(set(_each(clones, "head -c 16 /dev/urandom | od -An -tx1"))) == 2


def test_macs_differ(clones: list[VmMachine]) -> None:
    found = _each(clones, "cat /sys/class/net/eth0/address")
    assert found == [m.record.mac for m in clones]
    assert len(set(found)) == 2


def test_disk_and_shared_directory_are_their_own(clones: list[VmMachine]) -> None:
    assert _each(clones, "cat /srv/file") == ["kept", "kept"]
    for machine in clones:
        machine.run(["sh", "-c", f"echo {machine.name} >/srv/file; cp /srv/file /testbed/file"])
    assert _each(clones, "cat /srv/file") == list(_NAMES)
    assert [(m.shared.here / "file").read_text().strip() for m in clones] == list(_NAMES)


def test_the_console_begins_with_the_templates_and_goes_on(clones: list[VmMachine]) -> None:
    for machine in clones:
        log = KernelLog(machine)
        begin = log.mark("begin")
        machine.run(["sh", "-c", f"echo said by {machine.name} >/dev/kmsg"])
        assert f"said by {machine.name}" in log.between(begin, log.mark("end"))
        text = machine.console.read_text()
        assert text.index("testbed: ready") < text.index("said by")
        assert sum(f"said by {name}" in text for name in _NAMES) == 1


def test_memory_of_a_clone(clones: list[VmMachine]) -> None:
    for machine in clones:
        state = VmState(machine.console.parent)
        qemu = open_process(Identity(machine.record.uuid, state.libvirt))
        assert qemu is not None
        rollup = Path(f"/proc/{qemu.pid}/smaps_rollup").read_text()
        qemu.close()
        facts = dict(line.split(":") for line in rollup.splitlines()[1:])
        own = int(facts["Private_Dirty"].split()[0]) / 1024
        print(f"memory of its own: {own:.0f} MiB")
        # What nobody wrote to is the template's; how much that is, is for the benchmark to say.
        assert own < _SMALL.memory / 2


def test_a_template_removed_under_running_clones(clones: list[VmMachine]) -> None:
    (template,) = (
        p
        for p in (paths.cache() / "templates").iterdir()
        if clones[0].provenance["template"].startswith(p.name)
    )
    shutil.rmtree(template)
    # Pages that were not looked at before, too.
    assert _each(clones, "find /usr/bin -type f | xargs cat | wc -c; dmesg | wc -l")
    assert _each(clones, "sh -c 'tail -c 200M /dev/zero | wc -c'") == ["209715200"] * 2
    assert [m.death() for m in clones] == [None, None]


def test_a_broken_template_is_made_anew(
    image: Image, driver: TemplatePlan, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def start(name: str) -> str:
        directory = tmp_path / name
        with vm_machine(name, image, _SMALL, directory, Progress(), plan=driver) as machine:
            assert machine.run(["true"]).ok
            return machine.provenance["template"]

    digest = start("before")
    entry = paths.cache() / "templates" / digest[:16]
    with (entry / "ram").open("r+b") as ram:
        ram.seek(64 << 20)
        ram.write(bytes(1 << 20))
    capfd.readouterr()
    assert start("after") == digest
    assert f"template {digest[:16]} is broken" in capfd.readouterr().err


_MOUNTS = ["sh", "-c", "grep -E ' /(testbed|srv) ' /proc/mounts | sort"]


def test_when_no_template_can_be_made_the_machine_boots(
    image: Image, clones: list[VmMachine], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Machine) -> Mapping[str, str]:
        raise ProvisionError("nothing can be prepared")

    plan = TemplatePlan(("failing",), fail)
    with vm_machine("m", image, _SMALL, tmp_path, Progress(), plan=plan) as machine:
        assert machine.provenance["start"] == "cold"
        assert machine.run(_MOUNTS).stdout == clones[0].run(_MOUNTS).stdout
        assert machine.provenance["failed_clone"] == "nothing can be prepared"
    assert "cannot be cloned: nothing can be prepared; booting it" in capfd.readouterr().err
    assert list((paths.cache() / "templates").glob(".*")) == []
    assert {p.name for p in tmp_path.iterdir()} == {"console.log", "shared"}


def test_a_run_says_how_its_machine_started(testbed: Testbed) -> None:
    for options, start in (((), "clone"), (("--cold",), "cold")):
        outcome = testbed.run("run", "rxe", "-k", "loaded_from_our_build", *options)
        assert outcome.status == 0
        facts = outcome.record["environment"]
        assert (facts["start"], bool(facts["template"])) == (start, start == "clone")
