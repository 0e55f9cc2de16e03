"""User Mode Linux, for real: one machine, and three with iWARP between them."""

from __future__ import annotations

import pytest
from tests.vm.conftest import Testbed

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
