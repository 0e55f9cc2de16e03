"""The main job: everything passes, with complete results; what is broken on purpose fails."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.machines.conftest import Outcome, Sabotaged, Testbed

from smbdirect_testbed.config.spec import DriverSpec
from smbdirect_testbed.image.image import provide_image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel.driver_source import resolve
from smbdirect_testbed.lib.progress import Progress

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def whole_run(module_testbed: Testbed) -> Outcome:
    return module_testbed.run("run", "rxe")


def test_all_scenarios_pass(whole_run: Outcome, module_testbed: Testbed) -> None:
    assert whole_run.status == 0
    assert whole_run.failed() == set()
    assert module_testbed.leftovers() == []


def test_the_last_lines_say_what_a_newcomer_wants_to_know(whole_run: Outcome) -> None:
    end = "\n".join(whole_run.output.splitlines()[-8:])
    assert "passed" in end.lower()
    assert str(whole_run.results.resolve().name) in end or "results/latest" in end
    assert "smbdirect-testbed up rxe" in end


def test_record_is_complete(whole_run: Outcome) -> None:
    record = whole_run.record
    assert record["verdict"] == "passed"
    text = str(record)
    assert "-amd64" in text
    assert record["timings"]["first_scenario_s"] > 1
    for phase in ("driver_load", "hosts", "servers"):
        assert record["timings"][phase] > 0
    assert (whole_run.results / "report.html").read_text().count("http") < 5
    logs = list(whole_run.results.glob("**/kernel.log"))
    assert all(log.stat().st_size > 0 for log in logs)
    assert max(log.stat().st_size for log in logs) > 1000


def test_every_smbtorture_test_is_a_case_of_its_own(whole_run: Outcome) -> None:
    for transport in ("tcp", "smbdirect"):
        for suite in ("connect", "read", "rw", "lock", "create", "credits"):
            mine = [
                c for c in whole_run.cases() if f"smb2.{suite}::" in c and f"[{transport}]" in c
            ]
            assert mine, f"no case of smb2.{suite} over {transport}"


def test_captures_hold_whole_packets(whole_run: Outcome) -> None:
    captures = list(whole_run.results.glob("**/scenarios/*/*.pcap"))
    assert len(captures) > 10
    for capture in captures:
        subprocess.run(["tcpdump", "-r", str(capture), "-c", "3"], check=True, capture_output=True)


TRANSPORTS = "test_transport_selection or test_rdma_link or test_socket.py"


def test_without_the_socket_module_just_smbdirect_fails(sabotaged: Sabotaged) -> None:
    outcome = sabotaged("unload_socket_module", TRANSPORTS)
    assert outcome.status == 1
    passed = {c for c, verdict in outcome.cases().items() if verdict == "passed"}
    assert any("test_rdma_link" in c for c in passed)
    assert not any("test_rdma_link" in c for c in outcome.failed())
    assert not any("test_socket" in c for c in passed)


def test_without_smbd_all_of_smb_fails_and_rdma_does_not(sabotaged: Sabotaged) -> None:
    outcome = sabotaged("stop_smbd", "test_rdma_link or (test_transport_selection and copy)")
    assert outcome.status == 1
    assert {c.split("::")[0].split(".")[-1] for c in outcome.failed()} == {
        "test_transport_selection"
    }


def test_tcp_on_5445_is_found_out(sabotaged: Sabotaged) -> None:
    outcome = sabotaged("tcp_on_5445", "test_transport_selection and copy")
    assert outcome.status == 1
    assert all("smbdirect" in c for c in outcome.failed())
    assert outcome.failed()
    assert "SMB went over TCP" in outcome.output
    assert "SMB went over TCP" in (outcome.results / "report.html").read_text()


def test_a_panic_is_told_as_such_and_the_results_are_complete(sabotaged: Sabotaged) -> None:
    outcome = sabotaged("panic", "test_rdma_link or test_driver")
    assert outcome.status == 1
    assert "Kernel panic - not syncing: sysrq triggered crash" in outcome.output
    assert outcome.record["verdict"] == "failed"
    assert "sysrq triggered crash" in (outcome.results / "kernel.log").read_text()
    assert "sysrq triggered crash" in (outcome.results / "report.html").read_text()


def test_a_users_tree_is_built_and_its_errors_are_shown(testbed: Testbed, tmp_path: Path) -> None:
    tree = tmp_path / "linux"
    progress = Progress(quiet=True)
    resolve(DriverSpec(), provide_image(read_recipe("trixie"), progress), progress).write(tree)
    source = tree / "fs/smb/smbdirect/socket.c"
    good = source.read_text()

    source.write_text(good + "\nint broken(void)\n{\n\treturn undeclared;\n}\n")
    broken = testbed.run("run", "rxe", "--driver", str(tree), "-k", "loaded_from_our_build")
    assert broken.status == 3
    line = len(good.splitlines()) + 4
    assert f"fs/smb/smbdirect/socket.c:{line}" in broken.output
    assert "undeclared" in broken.output
    assert len(broken.output.splitlines()) < 60

    source.write_text(good + "\n/* edited */\n")
    mended = testbed.run("run", "rxe", "--driver", str(tree), "-k", "loaded_from_our_build")
    assert mended.status == 0
    assert str(tree) in str(mended.record)
    assert sorted(p.name for p in (tree / "fs/smb/smbdirect").glob("*.o")) == []
