"""The parts of the vm carrier that need no virtual machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from smbdirect_testbed.carriers.console import ConsoleReader, last_lines
from smbdirect_testbed.carriers.machine_files import VmRecord, VmState
from smbdirect_testbed.carriers.machine_process import Identity, end_processes, open_process
from smbdirect_testbed.carriers.vm import machine as virtual_machine
from smbdirect_testbed.carriers.vm.domain_xml import Accelerator
from smbdirect_testbed.carriers.vm.provide import attach_vm, destroy_vm
from smbdirect_testbed.carriers.vm.strays import destroy_vm_strays
from smbdirect_testbed.carriers.watched_run import run_watched
from smbdirect_testbed.lib.errors import CommandFailed, MachineDied, ProvisionError
from smbdirect_testbed.lib.wait import wait_until


@pytest.fixture
def record() -> VmRecord:
    return VmRecord("m", uuid4(), Accelerator.TCG, "no KVM", 2222, "9", "7", ("it did not boot",))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[VmState]:
    state = VmState(tmp_path / ("a long directory name, " * 8) / "instance")
    yield state
    state.remove()


@pytest.fixture
def process_of() -> Iterator[type[_Sleepers]]:
    yield _Sleepers
    _Sleepers.end()


class _Sleepers:
    """Processes with arguments of our choice."""

    running: list[subprocess.Popen[bytes]] = []  # noqa: RUF012

    @classmethod
    def start(cls, *arguments: str, name: str = sys.executable) -> subprocess.Popen[bytes]:
        script = "import time; time.sleep(60)"
        argv = [name, "-S", "-c", script, *arguments]
        proc = subprocess.Popen(argv, executable=sys.executable)
        cls.running.append(proc)
        file = Path(f"/proc/{proc.pid}/cmdline")
        wait_until(lambda: arguments[-1] in file.read_text(), "its arguments to show", timeout=10)
        return proc

    @classmethod
    def end(cls) -> None:
        for proc in cls.running:
            proc.kill()
            proc.wait()
        cls.running.clear()


def test_a_record_is_read_as_it_was_written(state: VmState, record: VmRecord) -> None:
    assert state.read_record() is None
    state.make()
    state.write_record(record)
    assert state.read_record() == record


def test_socket_paths_are_short_wherever_the_instance_lies(state: VmState) -> None:
    state.make()
    longest = state.libvirt / "lib/qemu" / f"domain-1-{'n' * 20}" / "monitor.sock"
    assert len(os.fsencode(longest)) <= 107
    assert (state.directory / "run").resolve() == state.runtime
    assert state.runtime.stat().st_mode & 0o77 == 0


def test_only_console_and_shared_files_stay(state: VmState, record: VmRecord) -> None:
    state.make()
    state.write_record(record)
    state.console.write_text("Linux")
    state.scratch.write_text("")
    runtime = state.runtime
    (state.shared / "ssh").mkdir()
    (state.shared / "capture.pcap").write_text("")
    destroy_vm("m", state.directory)
    assert {p.name for p in state.directory.iterdir()} == {"console.log", "shared"}
    assert [p.name for p in state.shared.iterdir()] == ["capture.pcap"]
    assert not runtime.exists()


def test_destroying_nothing(tmp_path: Path) -> None:
    destroy_vm("m", tmp_path / "never made")


def test_destroying_what_a_killed_run_had_only_begun(state: VmState) -> None:
    state.make()
    runtime = state.runtime
    destroy_vm("m", state.directory)
    assert not runtime.exists()


def test_a_machine_whose_directory_was_removed_is_found(
    state: VmState, record: VmRecord, process_of: type[_Sleepers]
) -> None:
    state.make()
    state.write_record(record)
    ours = process_of.start(str(record.uuid))
    assert state.directory not in destroy_vm_strays()
    shutil.rmtree(state.directory)
    assert state.directory in destroy_vm_strays()
    assert ours.wait(timeout=10) < 0
    assert not state.has_runtime


def test_another_machine_is_left_alone(state: VmState, record: VmRecord) -> None:
    state.make()
    state.write_record(record)
    with pytest.raises(ProvisionError, match="is m, not other"):
        destroy_vm("other", state.directory)
    with pytest.raises(ProvisionError, match="there is no machine other"):
        attach_vm("other", state.directory)


def test_a_machine_that_has_died_says_so(state: VmState, record: VmRecord) -> None:
    state.make()
    state.write_record(record)
    state.console.write_text("[ 1.0] Kernel panic - not syncing: told to\n[ 1.1] and so on\n")
    machine = attach_vm("m", state.directory)
    assert machine.death() == "Kernel panic - not syncing: told to"
    with pytest.raises(MachineDied, match="told to"):
        machine.run(["true"])


def test_destroying_ends_the_process_of_that_machine_only(
    state: VmState, record: VmRecord, process_of: type[_Sleepers]
) -> None:
    state.make()
    state.write_record(record)
    ours = process_of.start(str(record.uuid))
    others = [process_of.start(str(UUID(int=1))), process_of.start(f"x{record.uuid}")]
    destroy_vm("m", state.directory)
    assert ours.wait(timeout=10) < 0
    assert [p.poll() for p in others] == [None, None]


def test_processes_are_known_by_libvirts_directory_too(
    tmp_path: Path, process_of: type[_Sleepers]
) -> None:
    identity = Identity(uuid4(), tmp_path / "libvirt")
    probing = process_of.start(f"unix:{tmp_path}/libvirt/lib/x", name="/usr/bin/qemu-system-x86_64")
    reader = process_of.start(f"{tmp_path}/libvirt/log")
    neighbour = process_of.start(f"{tmp_path}/libvirt2/x", name="/usr/bin/qemu-system-x86_64")
    end_processes(identity)
    assert probing.wait(timeout=10) < 0
    assert [p.poll() for p in (reader, neighbour)] == [None, None]


def test_a_process_is_seen_to_end(process_of: type[_Sleepers], tmp_path: Path) -> None:
    identity = Identity(uuid4(), tmp_path)
    assert open_process(identity) is None
    started = process_of.start(str(identity.uuid))
    held = open_process(identity)
    assert held is not None
    assert held.pid == started.pid
    assert not held.ended()
    held.kill()
    assert held.ended(timeout=10)
    started.wait()
    held.kill()
    held.close()


def test_console_lines_come_once_and_whole(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    reader = ConsoleReader(console)
    assert reader.new_lines() == []
    console.write_bytes(b"one\r\ntw")
    assert reader.new_lines() == ["one"]
    with console.open("ab") as f:
        f.write(b"o\nthree\n")
    assert reader.new_lines() == ["two", "three"]
    assert last_lines(console, 2) == "two\nthree"


def _nothing() -> None:
    pass


def test_a_watched_command_with_much_input_and_output() -> None:
    data = "0123456789\n" * 300_000
    result = run_watched(["cat"], input=data, timeout=30, watch=_nothing)
    assert result.ok
    assert result.stdout == data


def test_a_watched_command_may_leave_its_output_open() -> None:
    begun = time.monotonic()
    result = run_watched(
        ["sh", "-c", "setsid sleep 5 & echo done"], input=None, timeout=30, watch=_nothing
    )
    assert result.stdout == "done\n"
    assert time.monotonic() - begun < 3


def test_a_watched_command_at_its_deadline() -> None:
    script = "echo begun; echo oops >&2; sleep 60"
    with pytest.raises(CommandFailed) as caught:
        run_watched(["sh", "-c", script], input=None, timeout=0.5, watch=_nothing)
    assert caught.value.status is None
    assert caught.value.output == "begun\noops\n"


def test_a_watched_command_ends_when_the_watch_raises() -> None:
    def died() -> None:
        raise MachineDied("machine m died: QEMU has ended")

    begun = time.monotonic()
    with pytest.raises(MachineDied):
        run_watched(["sleep", "60"], input=None, timeout=60, watch=died)
    assert time.monotonic() - begun < 3


def test_what_qemu_only_warns_of_is_not_why_it_ended(tmp_path: Path) -> None:
    log = tmp_path / "m.log"
    log.write_text("2026-11-22T10:00:00.1Z qemu-system-x86_64: warning: TCG lacks something\n")
    assert virtual_machine._complaint(tmp_path) is None
    with log.open("a") as more:
        more.write("2026-11-22T10:00:01.1Z qemu-system-x86_64: cannot set up guest memory\n")
        more.write("2026-11-22T10:00:02.1Z qemu-system-x86_64: warning: and more\n")
    assert virtual_machine._complaint(tmp_path) == "QEMU has ended: cannot set up guest memory"
