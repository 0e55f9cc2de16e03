"""User Mode Linux, for real: one machine, and three with iWARP between them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.machines.conftest import Testbed

from smbdirect_testbed.carriers.uml.provide import UmlMachine, uml_machine
from smbdirect_testbed.config.spec import MachineSpec
from smbdirect_testbed.image.image import provide_image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel.uml import provide_uml_kernel
from smbdirect_testbed.lib.progress import Progress

pytestmark = pytest.mark.vm


def test_one_machine(testbed: Testbed) -> None:
    chosen = "links_are_active or to-server-ipv4 or (suite and smbdirect-smb2.connect)"
    outcome = testbed.run("run", "uml-rxe", "-k", chosen)
    assert outcome.status == 0
    assert outcome.record["counts"]["passed"] >= 3
    assert outcome.record["environment"]["carrier"] == "uml"
    assert outcome.record["environment"]["kernel"].endswith("-testbed")


def test_three_machines_with_iwarp(testbed: Testbed) -> None:
    outcome = testbed.run(
        "run", "uml-siw", "-k", "cifs_mounts or (suite and smbdirect-smb2.connect)"
    )
    assert outcome.status == 0
    assert outcome.record["counts"]["passed"] >= 2
    logs = {path.name for path in outcome.results.glob("kernel-*.log")}
    assert logs == {"kernel-client.log", "kernel-server.log", "kernel-kserver.log"}


def test_killed_while_it_runs(testbed: Testbed) -> None:
    proc = testbed.start("run", "uml-rxe", "-k", "test_copy")
    assert proc.stdout
    for line in proc.stdout:
        if "watching" in line:
            break
    proc.kill()
    proc.wait()
    assert "orphan" in testbed.run("status").output
    assert testbed.run("clean", "--yes").status == 0
    assert testbed.leftovers() == []


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UmlMachine]:
    """One whose root is hostile."""
    progress = Progress()
    image = provide_image(read_recipe("trixie"), progress)
    kernel = provide_uml_kernel(image, progress)
    directory = tmp_path_factory.mktemp("machine")
    (directory / "secret").write_text("PRIVATE KEY")
    with uml_machine("m", image, kernel, MachineSpec(), directory, progress) as machine:
        yield machine


def test_it_sees_no_more_than_its_shared_directory(machine: UmlMachine) -> None:
    """Its kernel looks up names for it, so a link or ``..`` there is one of this computer's."""
    secret = machine.shared.here.parent / "secret"
    done = machine.run(["sh", "-c", _LOOK_AROUND, "look", str(secret.parent)], check=False)
    print(done.output)
    assert "shared: ssh" in done.stdout
    assert "PRIVATE KEY" not in done.stdout
    assert "root:" not in done.stdout
    assert secret.read_text() == "PRIVATE KEY"


_LOOK_AROUND = """
mkdir -p /mnt/a /mnt/b /mnt/c
busybox mount -t hostfs -o / none /mnt/a
echo shared: $(ls /mnt/a | grep ssh)
cat /mnt/a/etc/passwd "/mnt/a$1/secret"
busybox mount -t hostfs -o .. none /mnt/b && cat /mnt/b/secret && echo x >/mnt/b/secret
busybox mount -t hostfs -o ../../../../../../../../../.. none /mnt/c && cat /mnt/c/etc/passwd
# A directory for one mount, and a link of this computer's for the other.
mkdir /testbed/d
cd /testbed/d
rmdir /mnt/a/d
ln -s "$1" /mnt/a/d
cat /testbed/d/secret
echo x >/testbed/d/secret
"""


def test_it_has_no_way_out(machine: UmlMachine) -> None:
    """Not to this computer's other addresses either; slirp4netns itself shuts loopback only."""
    addresses = [
        address.address
        for listed in psutil.net_if_addrs().values()
        for address in listed
        if address.family is socket.AF_INET and not address.address.startswith("127.")
    ]
    if not addresses:
        pytest.skip("this computer has no address but loopback")
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.settimeout(0.1)
        where = [addresses[0], str(server.getsockname()[1])]
        done = machine.run(["python3", "-I", "-c", _CONNECT, *where], check=False, timeout=30)
        print(done.output)
        with pytest.raises(TimeoutError):
            server.accept()
    assert done.status == 1


_CONNECT = """
import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
"""


_TRIALS = 3
_TAKES_ALL_MEMORY = '''
# Not of the process's own, so that larger ones, the agent among them, are ended before it.
EATER = """
import os
memory, block = os.memfd_create("eaten"), bytes(1 << 20)
while True:
    os.write(memory, block)
"""

def test_takes_all(client):
    assert not client.run(["python3", "-I", "-S", "-c", EATER], check=False).ok

def test_goes_on(client):
    assert client.run(["echo", "here"]).stdout == "here\\n"
'''


def test_machine_is_out_of_memory(testbed: Testbed, tmp_path: Path) -> None:
    """The scenario fails for it, and the run goes on: the agent is spared.

    At times the kernel finds a page to take from a program, over and over, and ends nothing until
    the scenario's deadline.
    """
    scenarios = tmp_path / "test_memory.py"
    scenarios.write_text(_TAKES_ALL_MEMORY)
    messages = []
    for _ in range(_TRIALS):
        outcome = testbed.run("run", "uml-rxe", str(scenarios))
        assert outcome.status == 1
        outcomes = {s["id"].rpartition("::")[2]: s for s in outcome.record["scenarios"]}
        assert outcomes["test_takes_all"]["outcome"] == "failed"
        assert outcomes["test_goes_on"]["outcome"] == "passed"
        messages.append(outcomes["test_takes_all"]["message"])
        if "Out of memory" in messages[-1]:
            return
    pytest.fail("\n".join(messages))


_ENDS_THE_CAPTURE = """
def test_ends_the_capture(client):
    client.run(["pkill", "tcpdump"])

def test_goes_on(client):
    ignored = client.machine.run(["grep", "SigIgn", "/proc/1/status"]).stdout.split()
    assert int(ignored[1], 16) == 0
"""


def test_capture_ends_and_no_signal_is_ignored(testbed: Testbed, tmp_path: Path) -> None:
    """Nobody waits for a dead tcpdump's markers; and what Python ignores, init does not."""
    scenarios = tmp_path / "test_capture.py"
    scenarios.write_text(_ENDS_THE_CAPTURE)
    begun = time.monotonic()
    outcome = testbed.run("run", "uml-rxe", str(scenarios))
    assert time.monotonic() - begun < 60
    assert outcome.record["counts"]["passed"] == 2
    assert any("tcpdump has ended" in note for note in outcome.record["notes"])


_STAYS_CONNECTED = """
import pytest
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.config.spec import Transport
from smbdirect_testbed.lib.wait import wait_until

def busy(smbd):
    try:
        smbd.wait_until_idle(timeout=0)
    except ProvisionError:
        return True

@pytest.mark.parametrize("transport", [Transport.TCP, Transport.SMBDIRECT])
def test_stays_connected(smbd, client, scenario_log, transport):
    smbd.wait_until_idle()
    stays = smbd.samba.command([
        "smbclient", smbd.unc(client), f"--user={smbd.account.user}%{smbd.account.password}",
        f"--option=client smb transports={smbd.samba.spelt([transport])}",
        "--command=mkdir watched; notify watched",
    ])
    with client.background(stays, scenario_log / "smbclient.log"):
        wait_until(lambda: busy(smbd), "a client of smbd's", timeout=20)
        with pytest.raises(ProvisionError, match="still serves a client"):
            smbd.wait_until_idle(timeout=1)
    smbd.wait_until_idle()
"""


def test_smbd_is_idle_when_its_clients_are_gone(testbed: Testbed, tmp_path: Path) -> None:
    scenarios = tmp_path / "test_idle.py"
    scenarios.write_text(_STAYS_CONNECTED)
    assert testbed.run("run", "uml-rxe", str(scenarios)).record["counts"]["passed"] == 2
