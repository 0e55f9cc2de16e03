"""Instances: who owns them, which are orphans, what a second one of the same name gets."""

import subprocess
import sys
from pathlib import Path

import pytest

from smbdirect_testbed.carriers import start
from smbdirect_testbed.environment.instance import find_instance, instances, new_instance, orphans
from smbdirect_testbed.lib.errors import UsageError
from smbdirect_testbed.lib.wait import wait_until


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMBDIRECT_TESTBED_STATE", str(tmp_path))
    monkeypatch.setattr(start, "destroy_all", lambda directory: None)
    return tmp_path


def test_an_instance_in_use_is_no_orphan_and_goes_with_its_context() -> None:
    with new_instance("a", keep=False) as a:
        assert [i.name for i in instances()] == ["a"]
        assert a.in_use()
        assert orphans() == []
        assert find_instance(None) == a
    assert instances() == []


def test_an_exception_removes_it_even_if_it_was_to_be_kept() -> None:
    with pytest.raises(KeyboardInterrupt), new_instance("a", keep=True):
        raise KeyboardInterrupt
    assert instances() == []


def test_a_name_in_use_is_refused_and_nothing_is_lost(state: Path) -> None:
    with new_instance("a", keep=False) as a:
        (a.directory / "file").touch()
        with pytest.raises(UsageError, match="a is up already"), new_instance("a", keep=False):
            pass
        assert (a.directory / "file").exists()
        assert [p.name for p in state.iterdir()] == ["a"]


def test_killed_process_leaves_an_orphan_that_can_be_removed(state: Path) -> None:
    program = (
        "import signal\n"
        "from smbdirect_testbed.environment.instance import new_instance\n"
        "with new_instance('a', keep=False):\n"
        "    print('up', flush=True)\n"
        "    signal.pause()\n"
    )
    proc = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert proc.stdout
    assert proc.stdout.readline() == b"up\n"
    assert orphans() == []
    proc.kill()
    proc.wait()
    proc.stdout.close()
    (orphan,) = wait_until(orphans, "the orphan", timeout=5)
    with pytest.raises(UsageError, match="no environment is up"):
        find_instance(None)
    orphan.remove()
    assert list(state.iterdir()) == []


def test_which_of_two() -> None:
    with new_instance("a", keep=False), new_instance("b", keep=False) as b:
        with pytest.raises(UsageError, match="more than one environment is up: a, b"):
            find_instance(None)
        assert find_instance("b") == b
        with pytest.raises(UsageError, match="no environment 'c' is up"):
            find_instance("c")
