"""The vm carrier with a real machine: commands, files, death, and what is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from smbdirect_testbed.carriers.machine_files import VmState
from smbdirect_testbed.carriers.machine_process import Identity, open_process
from smbdirect_testbed.carriers.vm.provide import (
    BootFailed,
    VmMachine,
    attach_vm,
    destroy_vm,
    vm_machine,
)
from smbdirect_testbed.config.spec import MachineSpec
from smbdirect_testbed.image.image import Image, provide_image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel.splats import SplatKind, find_splats
from smbdirect_testbed.lib.errors import CommandFailed, MachineDied, ProvisionError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.machine.kernel_log import KernelLog

pytestmark = pytest.mark.vm

_SMALL = MachineSpec(memory=1024)


@pytest.fixture(scope="module")
def image() -> Image:
    return provide_image(read_recipe("trixie"), Progress())


@pytest.fixture(scope="module")
def machine(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VmMachine]:
    directory = tmp_path_factory.mktemp("machine")
    with vm_machine("m", image, _SMALL, directory, Progress()) as machine:
        yield machine
    assert _leftovers(directory) == []


def _leftovers(directory: Path) -> list[str]:
    """Processes and files that know of the machine in a directory."""
    names = (str(directory), "smbdirect-testbed-m")
    found = [
        " ".join(p.info["cmdline"])
        for p in psutil.process_iter(["cmdline"])
        if any(name in word for word in p.info["cmdline"] or () for name in names)
    ]
    expected = {"console.log", "console.1.log", "shared"}
    return found + [p.name for p in directory.iterdir() if p.name not in expected]


def test_a_command(machine: VmMachine) -> None:
    result = machine.run(["sh", "-c", "cat; echo err >&2; exit 3"], input=b"in\n", check=False)
    assert (result.stdout, result.stderr, result.status) == ("in\n", "err\n", 3)
    with pytest.raises(CommandFailed, match="failed with status 1: false"):
        machine.run(["false"])


def test_a_command_at_its_deadline_ends_in_the_machine_too(machine: VmMachine) -> None:
    with pytest.raises(CommandFailed, match="did not end in time: sh -c 'sleep 4711 & "):
        machine.run(["sh", "-c", "sleep 4711 & sleep 4712"], timeout=1)
    processes = machine.run(["ps", "axo", "args"]).stdout.splitlines()
    assert "sleep 4711" not in processes
    assert "sleep 4712" not in processes


def test_files_are_shared(machine: VmMachine) -> None:
    (machine.shared.here / "ours").write_text("a")
    there = machine.shared.there
    machine.run(["sh", "-c", f"cat {there}/ours - >{there}/theirs; chmod 600 {there}/theirs"])
    assert (machine.shared.here / "theirs").read_text() == "a"


def test_the_scratch_disk_takes_xattrs(machine: VmMachine) -> None:
    script = "touch /srv/f && setfattr -n user.a -v b /srv/f && getfattr -n user.a /srv/f"
    assert 'user.a="b"' in machine.run(["sh", "-c", script]).stdout


def test_nothing_but_ssh_gets_through(machine: VmMachine) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = str(server.getsockname()[1])
        connect = ["busybox", "timeout", "5", "busybox", "nc", "-w", "2", "10.0.2.2", port]
        assert not machine.run(connect, check=False).ok
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    ports = [
        (c.laddr.ip, c.laddr.port)
        for p in psutil.process_iter(["cmdline"])
        if str(machine.record.uuid) in (p.info["cmdline"] or ())
        for c in p.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    ]
    assert ports == [("127.0.0.1", machine.record.ssh_port)]


def test_marks_divide_the_kernel_log(machine: VmMachine) -> None:
    log = KernelLog(machine)
    begin = log.mark("begin")
    machine.run(["sh", "-c", "echo between >/dev/kmsg"])
    end = log.mark("end")
    assert log.between(begin, end).split("] ")[-1] == "between\n"


def test_another_process_can_use_it(machine: VmMachine) -> None:
    directory = machine.console.parent
    other = attach_vm("m", directory)
    assert other.run(["hostname"]).stdout == machine.run(["hostname"]).stdout
    other.channel.close()
    assert other.run(["true"]).ok
    other.close()
    attach_vm("m", directory).close()
    assert machine.channel.is_open()


def test_a_port_in_use(machine: VmMachine, image: Image, tmp_path: Path) -> None:
    spec = MachineSpec(memory=1024, ssh_port=machine.record.ssh_port)
    with (
        pytest.raises(ProvisionError, match=rf"^port {spec.ssh_port} on 127\.0\.0\.1"),
        vm_machine("m", image, spec, tmp_path, Progress()),
    ):
        pass
    assert _leftovers(tmp_path) == []


def test_a_panic_is_noticed_while_a_command_runs(image: Image, tmp_path: Path) -> None:
    with vm_machine("m", image, _SMALL, tmp_path, Progress()) as machine:
        log = KernelLog(machine)
        begin = log.mark("begin")
        started = time.monotonic()
        with pytest.raises(MachineDied, match="Kernel panic - not syncing: sysrq"):
            machine.run(["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 60"])
        assert time.monotonic() - started < 10
        splats = find_splats(log.between(begin, log.mark("end")))
        assert [s.kind for s in splats] == [SplatKind.PANIC]
    assert _leftovers(tmp_path) == []


def test_a_machine_that_does_not_boot_is_tried_twice(image: Image, tmp_path: Path) -> None:
    spec = MachineSpec(memory=1024, kernel_options=("rdinit=/nonexistent", "root=/dev/none"))
    with (
        pytest.raises(BootFailed, match="machine m did not boot: Kernel panic") as caught,
        vm_machine("m", image, spec, tmp_path, Progress()),
    ):
        pass
    assert "Kernel panic" in (caught.value.detail or "")
    assert (tmp_path / "console.1.log").exists()
    assert _leftovers(tmp_path) == []


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5, 4.0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_while_starting(
    image: Image, tmp_path: Path, seconds: float, number: signal.Signals
) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            with vm_machine("m", image, _SMALL, tmp_path, Progress(quiet=True)):
                time.sleep(60)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(pid, number)
    os.waitpid(pid, 0)
    if number == signal.SIGKILL:
        destroy_vm("m", tmp_path)
    assert _leftovers(tmp_path) == []


def test_kept_and_taken_down_by_another(image: Image, tmp_path: Path) -> None:
    with vm_machine("m", image, _SMALL, tmp_path, Progress(), keep=True) as machine:
        pass
    assert subprocess.run(machine.argv(["exit 3"])).returncode == 127
    state = VmState(tmp_path)
    qemu = open_process(Identity(machine.record.uuid, state.libvirt))
    assert qemu is not None
    destroy_vm("m", tmp_path)
    assert qemu.ended()
    qemu.close()
    assert _leftovers(tmp_path) == []
