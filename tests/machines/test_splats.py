"""Reports of real kernels, made on purpose by a module of ours: each is seen, and has its place.

With ``SMBDIRECT_TESTBED_RECORD=DIRECTORY`` what the kernels said is left there, for
``tests/data/kernel_log``; with ``SMBDIRECT_TESTBED_SLOW=1`` kinds of which a kernel reports only
the first are made, too, each in a machine of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from smbdirect_testbed.carriers.uml.provide import UmlMachine, uml_machine
from smbdirect_testbed.config.envfile import load_environment
from smbdirect_testbed.evidence.kmemleak import LeakDetector
from smbdirect_testbed.image.image import Image, provide_image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel.build import kbuild_command
from smbdirect_testbed.kernel.source_lines import SourceLines
from smbdirect_testbed.kernel.splats import Splat, SplatKind
from smbdirect_testbed.kernel.uml import UmlKernel, provide_uml_kernel
from smbdirect_testbed.kernel.uml_config import UmlConfig
from smbdirect_testbed.lib.errors import MachineDied
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.lib.wait import wait_until
from smbdirect_testbed.machine.kernel_log import KernelLog

pytestmark = [pytest.mark.vm, pytest.mark.thorough]

_SOURCE = Path(__file__).with_name("splat")
_MAKE = "/sys/module/splat/parameters/make"
_INNER = "splat_inner"
_RECORD = os.environ.get("SMBDIRECT_TESTBED_RECORD")
_SLOW = bool(os.environ.get("SMBDIRECT_TESTBED_SLOW"))

_ORDINARY = {
    "warning": SplatKind.WARNING,
    "message": SplatKind.WARNING,
    "list": SplatKind.LIST,
    "refcount": SplatKind.REFCOUNT,
    "slab_objects": SplatKind.SLAB,
    "slab_redzone": SplatKind.SLAB,
    "kobject": SplatKind.OBJECT,
    "sysfs": SplatKind.OBJECT,
    "irq_flags": SplatKind.INTERRUPT,
    "checksum": SplatKind.CHECKSUM,
    "page_allocation": SplatKind.ALLOCATION,
    "vmalloc": SplatKind.ALLOCATION,
    "hung": SplatKind.HUNG_TASK,
    "hung_io": SplatKind.HUNG_TASK,
    "hung_mutex": SplatKind.HUNG_TASK,
    "device_held": SplatKind.DEVICE_HELD,
}
_DEADLY = {
    "oops": SplatKind.OOPS,
    "bug": SplatKind.BUG,
    "panic": SplatKind.PANIC,
    "usercopy": SplatKind.USERCOPY,
}
_DEBUG = {
    "use_after_free": SplatKind.KASAN,
    "out_of_bounds": SplatKind.KASAN,
    "index": SplatKind.UBSAN,
    "shift": SplatKind.UBSAN,
    "active_timer": SplatKind.OBJECT,
    "init_active_timer": SplatKind.OBJECT,
    "softirq": SplatKind.INTERRUPT,
    "atomic_sleep": SplatKind.BUG,
    "scheduling": SplatKind.BUG,
    "workqueue": SplatKind.BUG,
    "device_held": SplatKind.DEVICE_HELD,
    "leak": SplatKind.LEAK,
}
_LOCKDEP = (
    *("lock_circle", "lock_recursion", "lock_state", "lock_balance", "lock_freed"),
    *("lock_key", "rcu", "wait_context"),
)
_ELSEWHERE = {"softirq", "workqueue", "page_allocation", "device_held"}
"""Made by another task, or without a trace."""


@dataclass(frozen=True)
class Kernel:
    """A kernel with the module for it.

    :param name: of the environment whose kernel it is
    """

    name: str
    image: Image
    kernel: UmlKernel
    module: Path

    @contextmanager
    def machine(self, directory: Path) -> Iterator[UmlMachine]:
        spec = load_environment(self.name).machine
        with uml_machine("m", self.image, self.kernel, spec, directory, Progress()) as machine:
            there = machine.shared.here / "splat.ko"
            there.write_bytes(self.module.read_bytes())
            machine.run(["insmod", str(machine.shared.path_there(there))])
            machine.run(["sh", "-c", "echo 2 >/proc/sys/kernel/hung_task_timeout_secs"])
            yield machine


def _kernel(name: str, directory: Path) -> Kernel:
    image = provide_image(read_recipe("trixie"), Progress())
    kernel = provide_uml_kernel(image, Progress(), UmlConfig(load_environment(name).kernel.config))
    root = kernel.toolchain.build_root
    work_name = f"splat-{kernel.toolchain.headers.name}"
    with root.work_directory(work_name, Progress()) as work:
        inputs = {work / file.name: file for file in _SOURCE.iterdir()}
        command = [*kbuild_command(kernel.toolchain), f"M={work}", "modules"]
        module = directory / f"{name}.ko"
        root.put(inputs)
        root.run(command)
        root.take({work / "splat.ko": module})
    return Kernel(name, image, kernel, module)


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    return _kernel("uml-rxe", tmp_path_factory.mktemp("ordinary"))


@pytest.fixture(scope="module")
def debug(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    return _kernel("uml-rxe-debug", tmp_path_factory.mktemp("debug"))


@pytest.fixture(scope="module")
def machine(ordinary: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UmlMachine]:
    with ordinary.machine(tmp_path_factory.mktemp("machine")) as machine:
        yield machine


@pytest.fixture(scope="module")
def debug_machine(debug: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UmlMachine]:
    with debug.machine(tmp_path_factory.mktemp("debug-machine")) as machine:
        yield machine


def _made(machine: UmlMachine, kind: str, name: str) -> list[Splat]:
    """What the kernel reports when a mistake is made."""
    log = KernelLog(machine)
    begin = log.mark(kind)
    with suppress(MachineDied):
        machine.run(["sh", "-c", f"echo {kind} >{_MAKE}"], timeout=60)
        if kind == "leak":
            LeakDetector(machine).scan_all()
    found = log.splats(begin)
    if not found and machine.death() is None:
        wait_until(lambda: log.splats(begin), f"the kernel to report {kind}", timeout=30)
    end = log.mark("made")
    if _RECORD:
        text = log.between(begin, end)
        (Path(_RECORD) / f"{name}-{kind.replace('_', '-')}.log").write_text(text)
    return [f.splat for f in log.splats(begin, end)]


def _check(splats: list[Splat], kind: str, expected: SplatKind) -> None:
    failures = [s for s in splats if s.fails]
    assert failures, f"{kind} was not seen"
    assert failures[0].kind is expected
    if kind not in _ELSEWHERE:
        assert any(_INNER in s.fingerprint for s in failures), [s.fingerprint for s in failures]


@pytest.mark.parametrize("kind", _ORDINARY)
def test_ordinary_kernel(machine: UmlMachine, kind: str) -> None:
    _check(_made(machine, kind, "uml"), kind, _ORDINARY[kind])


def test_lines_of_source(machine: UmlMachine, ordinary: Kernel) -> None:
    (splat,) = _made(machine, "message", "uml-again")
    source = SourceLines({"splat": ordinary.module})
    places = {frame.base: source.of(frame) for frame in splat.frames}
    file, _, line = places["splat_message"].rpartition(":")
    assert file == "splat.c"
    assert "credits left" in (_SOURCE / file).read_text().splitlines()[int(line) - 1]
    file, _, line = places[_INNER].rpartition(":")
    assert "make();" in (_SOURCE / file).read_text().splitlines()[int(line) - 1]


@pytest.mark.parametrize("kind", _DEADLY)
def test_the_end_of_a_machine(ordinary: Kernel, kind: str, tmp_path: Path) -> None:
    with ordinary.machine(tmp_path) as machine:
        _check(_made(machine, kind, "uml"), kind, _DEADLY[kind])
        assert machine.death()


@pytest.mark.parametrize("kind", _DEBUG)
def test_debug_kernel(debug_machine: UmlMachine, kind: str) -> None:
    _check(_made(debug_machine, kind, "uml-debug"), kind, _DEBUG[kind])


@pytest.mark.parametrize("kind", _LOCKDEP if _SLOW else _LOCKDEP[:1])
def test_lock_checker(debug: Kernel, kind: str, tmp_path: Path) -> None:
    """The first report ends the checking, so each is made in a machine of its own."""
    with debug.machine(tmp_path) as machine:
        expected = SplatKind.LOCKDEP
        _check(_made(machine, kind, "uml-debug"), kind, expected)
