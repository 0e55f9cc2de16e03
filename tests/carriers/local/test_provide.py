"""The carrier local without a driver: what it starts on this computer, and what is left of it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from tests.helpers.other_user import needs_root as needs_root_user
from tests.helpers.other_user import other_user

from smbdirect_testbed.carriers.local import modules, teardown
from smbdirect_testbed.carriers.local import record as local_record
from smbdirect_testbed.carriers.local.checks import ThisComputer
from smbdirect_testbed.carriers.local.first_process import first_process, start_time
from smbdirect_testbed.carriers.local.init import record_lines
from smbdirect_testbed.carriers.local.provide import (
    attach_local,
    destroy_local,
    destroy_local_stray,
    local_machine,
)
from smbdirect_testbed.carriers.local.record import (
    LocalRecord,
    boot,
    process_note,
    read_record,
    write_record,
)
from smbdirect_testbed.carriers.machine_process import Identity, end_processes, open_process
from smbdirect_testbed.image.image import Image, find_image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel.built_driver import BuiltDriver
from smbdirect_testbed.kernel.running import LoadedModule, RunningKernel
from smbdirect_testbed.lib.errors import CommandFailed, MachineDied, ProvisionError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.lib.wait import wait_until


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalRecord:
    """A record, kept where it disturbs nobody."""
    (tmp_path / "record").mkdir(mode=0o700)
    monkeypatch.setattr(local_record, "RECORD", tmp_path / "record/machine.json")
    return LocalRecord("machine", uuid4(), tmp_path / "m", boot(), ("ext4",), ("cifs", "ext4"))


def test_a_record_is_read_as_it_was_written(record: LocalRecord) -> None:
    assert read_record() is None
    write_record(record)
    assert read_record() == record
    local_record.remove_record(record)
    assert read_record() is None


def test_the_kernel_log_looks_as_on_a_console() -> None:
    record = "6,1337,61000123,-,caller=T1;EXT4-fs: mounted\n SUBSYSTEM=block\n DEVICE=b7:0\n"
    assert record_lines(record) == "[   61.000123] EXT4-fs: mounted\n"
    assert record_lines("4,1,5,c;one\\x0atwo\n") == "[    0.000005] one\n[    0.000005] two\n"


def test_only_modules_that_came_are_unloaded(
    record: LocalRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = {
        name: LoadedModule(name, users)
        for name, users in {"cifs": 0, "smbdirect": 1, "ext4": 0, "other": 0, "siw": 0}.items()
    }
    deleted: list[str] = []

    def delete(name: str) -> bool:
        deleted.append(name)
        del loaded[name]
        if name == "cifs":
            loaded["smbdirect"] = LoadedModule("smbdirect", 0)
        return True

    monkeypatch.setattr(modules, "loaded_modules", lambda: dict(loaded))
    monkeypatch.setattr(modules, "_delete", delete)
    ours = ("cifs", "ext4", "siw", "smbdirect")
    record = dataclasses.replace(record, modules_ours=ours, modules_before=("ext4", "siw"))
    assert modules.unload(record) == []
    assert deleted == ["cifs", "smbdirect"]


def test_a_module_in_use_stays_and_is_named(
    record: LocalRecord, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(modules, "loaded_modules", lambda: {"cifs": LoadedModule("cifs", 1)})
    monkeypatch.setattr(modules, "_TIMEOUT", 0.1)
    monkeypatch.setattr(teardown, "_remove_group", lambda _: None)
    write_record(record)
    teardown.take_down(record)
    assert "module cifs, which came with machine machine, cannot be" in capfd.readouterr().err
    assert read_record() is None


def test_after_the_computer_was_started_anew_nothing_is_unloaded(
    record: LocalRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teardown, "unload", lambda _: pytest.fail("unloaded modules"))
    old = dataclasses.replace(record, boot="another")
    write_record(old)
    assert not destroy_local(record.directory / "other")
    assert destroy_local(record.directory)
    assert read_record() is None


def _note(record: LocalRecord, pid: int, started: int) -> None:
    write_record(record)
    process_note(record).write_text(json.dumps({"pid": pid, "started": started}))


def test_the_process_that_starts_a_machine_is_not_taken_for_it(record: LocalRecord) -> None:
    """It is in the process namespace of everybody, whom taking it down would then end."""
    with subprocess.Popen(["sleep", "60"]) as starter:
        try:
            _note(record, starter.pid, start_time(starter.pid))
            assert first_process(record) is None
            with pytest.raises(AssertionError):
                list(teardown._inside(starter.pid))
        finally:
            starter.kill()


_NAMESPACES = ["unshare", "--pid", "--mount", "--fork", "--kill-child"]


@contextmanager
def _child(unshare: subprocess.Popen[str]) -> Iterator[int]:
    """The process that ``unshare`` started in its namespaces."""
    try:
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
        yield int(wait_until(children.read_text, "a process in namespaces", timeout=10))
    finally:
        unshare.kill()
        unshare.communicate()


@needs_root_user
def test_only_the_very_process_that_was_started_is_the_machine(record: LocalRecord) -> None:
    with _child(subprocess.Popen([*_NAMESPACES, "sleep", "60"], text=True)) as pid:
        _note(record, pid, start_time(pid) - 1)
        assert first_process(record) is None
        _note(record, pid, start_time(pid))
        found = first_process(record)
        assert found
        inside = subprocess.run([*found.enter(), "cat", "/proc/sys/kernel/ns_last_pid"], text=True)
        assert inside.returncode == 0
        found.kill()
        assert found.ended(timeout=10)
        found.close()
        assert first_process(record) is None


@needs_root_user
def test_nothing_of_another_user_is_taken_for_the_machine(
    record: LocalRecord, tmp_path: Path
) -> None:
    """Root would enter that user's namespaces, and run that user's programs there."""
    argument = f"testbed.uuid={record.uuid}"
    sleep = ["sh", "-c", "sleep 60; exit", argument, str(record.uuid)]
    with other_user() as hostile:
        namespaces = [*_NAMESPACES, "--user", "--map-root-user"]
        with _child(hostile.start([*namespaces, *sleep])) as pid:
            write_record(record)
            assert first_process(record) is None
            # Not even if it came by the number that was noted.
            _note(record, pid, start_time(pid))
            assert first_process(record) is None
            assert open_process(Identity(record.uuid, tmp_path)) is None
            end_processes(Identity(record.uuid, tmp_path))
            assert Path(f"/proc/{pid}").exists()


@needs_root_user
def test_a_record_is_root_s_alone(record: LocalRecord) -> None:
    directory = local_record.RECORD.parent
    write_record(record)
    assert local_record.RECORD.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    with other_user() as hostile:
        for mode, uid in ((0o755, 0), (0o700, hostile.uid)):
            directory.chmod(mode)
            os.chown(directory, uid, -1)
            assert read_record() is None
            with pytest.raises(ProvisionError, match="not a directory of this user alone"):
                write_record(record)


def test_modules_of_a_kernel(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "kernel/fs/smb/client/cifs.ko.xz: kernel/fs/netfs/netfs.ko.xz kernel/lib/oid-registry.ko\n"
        "kernel/crypto/ccm.ko:\n"
    )
    (tmp_path / "modules.builtin").write_text("kernel/net/ipv6/ipv6.ko\n")
    kernel = RunningKernel("1", "1", tmp_path)
    assert kernel.file("cifs") == tmp_path / "kernel/fs/smb/client/cifs.ko.xz"
    assert kernel.closure(["cifs", "own"]) == {"cifs", "netfs", "oid_registry", "own"}
    assert kernel.below(["crypto", "fs/smb"]) == ["cifs", "ccm"]
    assert kernel.has("ipv6")
    assert not kernel.has("netfs_other")
    assert kernel.headers is None


def _privileged() -> bool:
    here = ThisComputer.look()
    return here.root and bool(here.capabilities >> 21 & 1) and Path("/dev/loop-control").exists()


needs_root = pytest.mark.skipif(
    not _privileged() or find_image(read_recipe("trixie")) is None,
    reason="needs root with all privileges, loop devices and the image",
)
NO_DRIVER = BuiltDriver("none", Path(), (), Path(), Path(), "", "")


@pytest.fixture
def image() -> Image:
    image = find_image(read_recipe("trixie"))
    assert image
    return image


@pytest.fixture
def kernel(tmp_path: Path) -> RunningKernel:
    directory = tmp_path / "modules"
    directory.mkdir()
    return RunningKernel(directory=directory)


def _state() -> dict[str, object]:
    """What must be the same afterwards."""
    return {
        "mounts": Path("/proc/self/mounts").read_text(),
        "loops": {str(f) for f in Path("/sys/block").glob("loop*/loop")},
        "interfaces": {f.name for f in Path("/sys/class/net").iterdir()},
        "groups": {str(f) for f in Path("/sys/fs/cgroup").glob("**/smbdirect-testbed-*")},
        "record": read_record(),
    }


@pytest.fixture
def nothing_left(record: LocalRecord) -> Iterator[None]:
    before = _state()
    yield
    wait_until(lambda: _state() == before or None, "everything to be as before", timeout=10)


@needs_root
@pytest.mark.usefixtures("nothing_left")
class TestMachine:
    def test_commands(self, image: Image, kernel: RunningKernel, tmp_path: Path) -> None:
        with local_machine(
            *("m", image, kernel, tmp_path / "m", Progress(quiet=True)),
            driver=NO_DRIVER,
            own_network=True,
        ) as machine:
            assert machine.run(["cat"], input="through").stdout == "through"
            assert machine.run(["sh", "-c", "exit 3"], check=False).status == 3
            said = subprocess.run(machine.argv(["cat", "/proc/1/comm"]), capture_output=True)
            assert b"python" in said.stdout
            assert machine.run(["ls", "/sys/class/net"]).stdout.split() != []
            assert "lo:" in machine.run(["cat", "/proc/net/dev"]).stdout
            assert "eth" not in machine.run(["cat", "/proc/net/dev"]).stdout
            (machine.shared.here / "file").write_text("shared")
            assert machine.run(["cat", "/testbed/file"]).stdout == "shared"
            machine.run(["touch", "/usr/bin/written"])
            machine.run(["tee", "/dev/kmsg"], input="<5>a line for the log\n")
            wait_until(
                lambda: "] a line for the log\n" in machine.console.read_text() or None,
                "the kernel log",
                timeout=5,
            )
            begun = time.monotonic()
            with pytest.raises(CommandFailed, match="sleep 77"):
                machine.run(["sh", "-c", "setsid sleep 77 & sleep 77"], timeout=0.5)
            assert time.monotonic() - begun < 10
            assert machine.run(["pgrep", "sleep"], check=False).stdout == ""

    def test_its_mounts_are_its_own(
        self, image: Image, kernel: RunningKernel, tmp_path: Path
    ) -> None:
        """Even where mounts are passed on, as on most computers."""
        directory = tmp_path / "shared"
        directory.mkdir()
        subprocess.run(["mount", "--bind", directory, directory], check=True)
        try:
            subprocess.run(["mount", "--make-shared", directory], check=True)
            before = Path("/proc/self/mounts").read_text()
            with local_machine(
                *("m", image, kernel, directory / "m", Progress(quiet=True)),
                driver=NO_DRIVER,
                own_network=True,
            ):
                assert Path("/proc/self/mounts").read_text() == before
            left = {file.name for file in (directory / "m").iterdir()}
            assert left == {"console.log", "shared"}
        finally:
            subprocess.run(["umount", "--recursive", directory], check=True)

    def test_an_exception(self, image: Image, kernel: RunningKernel, tmp_path: Path) -> None:
        def interrupted() -> None:
            with local_machine(
                *("m", image, kernel, tmp_path / "m", Progress(quiet=True)),
                driver=NO_DRIVER,
                own_network=True,
                keep=True,
            ) as machine:
                machine.run(["sh", "-c", "mkdir /sys/fs/cgroup/g; setsid --fork sleep 77"])
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()

    def test_its_death_is_noticed(
        self, image: Image, kernel: RunningKernel, tmp_path: Path
    ) -> None:
        with local_machine(
            *("m", image, kernel, tmp_path / "m", Progress(quiet=True)),
            driver=NO_DRIVER,
            own_network=True,
        ) as machine:
            found = read_record()
            assert found
            local_record_end(found)
            wait_until(machine.death, "its death to be seen", timeout=10)
            with pytest.raises(MachineDied):
                machine.run(["true"])

    def test_it_does_not_start(self, image: Image, kernel: RunningKernel, tmp_path: Path) -> None:
        broken = dataclasses.replace(image, root=tmp_path / "nothing")
        with (
            pytest.raises(ProvisionError, match=r"did not start .*: mounting .*nothing"),
            local_machine(
                *("m", broken, kernel, tmp_path / "m", Progress(quiet=True)),
                driver=NO_DRIVER,
                own_network=True,
            ),
        ):
            pytest.fail("it started")

    def test_one_that_was_left(self, image: Image, kernel: RunningKernel, tmp_path: Path) -> None:
        """Kept, found again, and removed by another; then with its directory gone."""
        for gone in (False, True):
            directory = tmp_path / f"m-{gone}"
            with local_machine(
                *("m", image, kernel, directory, Progress(quiet=True)),
                driver=NO_DRIVER,
                own_network=True,
                keep=True,
            ) as machine:
                machine.run(["setsid", "--fork", "sleep", "infinity"])
            other = attach_local(directory)
            assert other
            assert other.run(["hostname"]).stdout == "testbed\n"
            other.close()
            assert destroy_local_stray() == []
            if gone:
                directory.rename(tmp_path / "elsewhere")
                assert destroy_local_stray() == [directory]
            else:
                assert destroy_local(directory)
            assert attach_local(directory) is None


def local_record_end(record: LocalRecord) -> None:
    """Kill a machine's first process."""
    found = first_process(record)
    assert found
    found.kill()
    found.close()
