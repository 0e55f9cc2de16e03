"""Environments that are up: shells, commands, ends; interrupted and killed runs."""

from __future__ import annotations

import signal

import pytest
from tests.machines.conftest import Testbed

from smbdirect_testbed.lib.wait import wait_until

pytestmark = pytest.mark.vm


def test_up_exec_down(testbed: Testbed) -> None:
    assert testbed.run("up", "rxe").status == 0
    status = testbed.run("status").output
    assert "rxe: up" in status
    assert "client, server, kserver" in status

    cat = testbed.run("exec", "client", "--", "cat", input="through and back")
    assert (cat.status, cat.output) == (0, "through and back")
    assert testbed.run("exec", "client", "--", "sh", "-c", "exit 42").status == 42
    killed = testbed.run("exec", "client", "--", "sh", "-c", "echo said >&2; kill -KILL $$")
    assert (killed.status, killed.output) == (128 + 9, "said\n")
    assert "10.7.0.2/24" in testbed.run("exec", "client", "--", "ip", "address").output
    assert testbed.run("exec", "server", "--", "pgrep", "-x", "smbd").status == 0
    nobody = testbed.run("exec", "nobody", "--", "true")
    assert nobody.status == 2
    assert "hosts are: client, server, kserver" in nobody.output

    again = testbed.run("up", "rxe")
    assert again.status == 2
    assert "rxe is up already" in again.output

    assert testbed.run("down").status == 0
    assert testbed.leftovers() == []


@pytest.mark.parametrize("phase", ["starting machine", "loading the driver", "starting smbd"])
def test_ctrl_c_leaves_nothing(testbed: Testbed, phase: str) -> None:
    proc = testbed.start("up", "rxe")
    assert proc.stdout
    for line in proc.stdout:
        if phase in line:
            proc.send_signal(signal.SIGINT)
            break
    output = proc.stdout.read()
    assert proc.wait(timeout=60) == 130
    assert "interrupted" in output
    assert "Traceback" not in output
    assert testbed.leftovers() == []


def test_what_a_killed_run_leaves_is_found_and_removed(testbed: Testbed) -> None:
    proc = testbed.start("run", "rxe", "-k", "nothing_of_this or test_rdma_link")
    assert proc.stdout
    for line in proc.stdout:
        if "loading the driver" in line:
            proc.kill()
            break
    proc.communicate(timeout=60)
    assert "orphan" in testbed.run("status").output
    assert testbed.leftovers() != []
    assert testbed.run("clean", "--yes").status == 0
    wait_until(lambda: testbed.leftovers() == [] or None, "the orphan to go", timeout=20)


def test_two_at_a_time_do_not_meet(testbed: Testbed) -> None:
    one = testbed.start("run", "rxe", "-k", "rping")
    two = testbed.run("run", "rxe", "-k", "rping")
    output, _ = one.communicate(timeout=300)
    assert (one.returncode, two.status) == (0, 0), output
