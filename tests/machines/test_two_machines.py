"""Environments of several machines, for real: links between machines, and one machine that dies."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from tests.machines.conftest import Sabotaged, Testbed

from smbdirect_testbed.carriers.vm.machine import VmMachine
from smbdirect_testbed.config.envfile import load_environment
from smbdirect_testbed.environment.blueprint import resolve
from smbdirect_testbed.environment.provide import provide
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import ExitStatus, MachineDied
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.lib.wait import wait_until
from smbdirect_testbed.machine.host import Host

pytestmark = pytest.mark.vm

_BOTH_CARRIERS = pytest.mark.parametrize("name", ["rxe-two-machines", "uml-rxe-two-machines"])


@_BOTH_CARRIERS
def test_one_dies_and_the_other_lives(name: str, tmp_path: Path) -> None:
    with provide(resolve(load_environment(name)), Progress(), tmp_path) as environment:
        client, server = environment.hosts["client"], environment.hosts["server"]
        assert client.machine is not server.machine
        for here, there in ((client, server), (server, client)):
            assert _ping(here, there, size=8972)
        _rping(client, server)
        with pytest.raises(MachineDied, match=r"^machine client died: Kernel panic"):
            client.run(["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 60"])
        assert re.match("machine client: Kernel panic", environment.death() or "")
        assert server.machine.death() is None
        # Frames that nobody takes are lost, however many, and hold up nobody.
        assert not _ping(server, client, size=8972, count=300)
        assert server.run(["pgrep", "-o", "-x", "smbd"]).ok
        if isinstance(server.machine, VmMachine):
            assert server.machine._qemu
            os.kill(server.machine._qemu.pid, signal.SIGKILL)
            wait_until(server.machine.death, "the death to be noticed", timeout=5)
            assert server.machine.death() == "QEMU has ended"
    assert not any(tmp_path.glob("machines/*/run"))


@_BOTH_CARRIERS
def test_a_run_tells_which_machine_died_and_its_results_are_complete(
    sabotaged: Sabotaged, name: str
) -> None:
    outcome = sabotaged("panic_of_client", "test_links or test_rdma_link", name)
    assert outcome.status == 1
    assert "machine client: Kernel panic - not syncing: sysrq triggered crash" in outcome.output
    assert outcome.record["verdict"] == "failed"
    assert "machine client: Kernel panic" in (outcome.results / "report.html").read_text()
    assert "sysrq triggered crash" in (outcome.results / "kernel-client.log").read_text()
    assert "sysrq triggered crash" not in (outcome.results / "kernel-server.log").read_text()
    counts = outcome.record["counts"]
    assert sum(counts.values()) == len(outcome.cases()) == 9
    assert counts["failed"] == 1
    assert counts["passed"] == 8


@pytest.mark.parametrize("name", ["siw", "rxe-two-machines"])
def test_clones_are_joined_like_machines_that_booted(testbed: Testbed, name: str) -> None:
    chosen = "test_links or to-server-ipv4 or cifs_mounts or (suite and smbdirect-smb2.connect)"
    outcome = testbed.run("run", name, "-k", chosen)
    assert outcome.status == 0
    assert outcome.record["environment"]["start"] == "clone"
    assert outcome.record["counts"]["passed"] >= 6


@pytest.mark.parametrize(
    ("what", "broken"),
    [("stop_netem", {"delay": True, "loss": True}), ("", {})],
    ids=["without-netem", "as-it-should-be"],
)
def test_delay_and_loss_of_a_link_are_measured(
    sabotaged: Sabotaged, tmp_path: Path, what: str, broken: dict[str, bool]
) -> None:
    text = (paths.environments() / "rxe-two-machines.toml").read_text()
    assert 'carrier = "vm"' in text
    text = text.replace('carrier = "vm"', 'carrier = "uml"')
    slow = tmp_path / "slow.toml"
    slow.write_text(text.replace("mtu = 9000", "mtu = 9000\ndelay = 20\nloss = 2", 1))
    outcome = sabotaged(what, "test_links", str(slow))
    failed = {re.sub(".*::test_", "", name) for name in outcome.failed()}
    delay, loss = (
        "the_round_trip_takes_twice_the_delay",
        "packets_are_lost_as_often_as_the_link_says",
    )
    assert failed == ({delay, loss} if broken else set())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("name", ["siw", "uml-siw"])
def test_killed_while_several_start(testbed: Testbed, name: str, number: signal.Signals) -> None:
    proc = testbed.start("run", name, "--cold", "-k", "rping")
    assert proc.stdout
    for line in proc.stdout:
        if "starting machine kserver" in line:
            break
    begun = time.monotonic()
    proc.send_signal(number)
    rest = proc.stdout.read()
    proc.wait()
    if number is signal.SIGINT:
        assert proc.returncode == ExitStatus.INTERRUPTED
        assert "Traceback" not in rest
        assert time.monotonic() - begun < 90
    else:
        assert testbed.run("clean", "--yes").status == 0
    assert testbed.leftovers() == []


def _ping(here: Host, there: Host, *, size: int, count: int = 5) -> bool:
    address = str(there.end_towards(here).ipv4.ip)
    options = ["-M", "do", "-c", str(count), "-i", "0.01", "-W", "1", "-s", str(size)]
    return here.run(["ping", *options, address], check=False, timeout=20).ok


def _rping(client: Host, server: Host) -> None:
    address = str(server.end_towards(client).ipv4.ip)
    with server.background(["rping", "-s", "-a", address, "-C", "3"], Path(os.devnull)):
        call = ["rping", "-c", "-a", address, "-C", "3", "-V", "-v"]
        wait_until(
            lambda: client.run(call, check=False).stdout.count("ping data") == 3 or None,
            "rping to listen",
            timeout=30,
        )
