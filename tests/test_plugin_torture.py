"""smbtorture in scenarios, with a machine that is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.plugin_run import Run

from smbdirect_testbed.errors import ExitStatus, UsageError
from smbdirect_testbed.spec import (
    RdmaType,
)

TORTURE = """
import pytest
from smbdirect_testbed.spec import Transport

@pytest.mark.parametrize("suite", ["smb2.rw"])
def test_suite(torture, suite):
    torture.run(suite, Transport.SMBDIRECT)
"""
KNOWNFAIL = """
[[expect]]
suite = "smb2.rw"
tests = ["invalid", "gone"]
level = "knownfail"
reason = "answers OK"
"""


@pytest.fixture
def torture_run(run: Run, samples: Path) -> Run:
    run.smbd = True
    run.write(TORTURE)
    (run.scenarios / "smbtorture").mkdir()
    (run.scenarios / "smbtorture" / "knownfail.toml").write_text(KNOWNFAIL)
    run.output, run.status = (samples / "smb2.rw.subunit").read_bytes(), 1
    return run


@pytest.fixture
def samples() -> Path:
    return Path(__file__).parent / "data" / "smbtorture"


def test_each_test_of_smbtorture_is_a_result(
    torture_run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    run = torture_run
    assert run.main() is ExitStatus.PASSED
    assert run.commands == [
        [
            "/testbed/driver/smbdirect-run",
            "smbtorture",
            "//10.7.0.1/share",
            "--user=tester%password",
            "--option=client smb transports=tcp:5445",
            "--option=torture:timelimit=2",
            "--format=subunit",
            "smb2.rw",
        ]
    ]
    assert [(s["id"], s["outcome"], s["suite"]) for s in run.json()["scenarios"]] == [
        ("test_it.py::test_suite[smb2.rw]", "passed", ""),
        ("test_it.py::smb2.rw::rw1[smbdirect]", "passed", "smb2.rw[smbdirect]"),
        ("test_it.py::smb2.rw::rw2[smbdirect]", "passed", "smb2.rw[smbdirect]"),
        ("test_it.py::smb2.rw::invalid[smbdirect]", "knownfail", "smb2.rw[smbdirect]"),
        ("test_it.py::smb2.rw::append[smbdirect]", "passed", "smb2.rw[smbdirect]"),
    ]
    known = run.junit()["invalid[smbdirect]"].find("skipped")
    assert known is not None
    assert known.attrib["type"] == "pytest.xfail"
    assert "answers OK" in known.attrib["message"]
    assert float(run.junit()["rw1[smbdirect]"].attrib["time"]) == pytest.approx(0.052)
    directory = run.results / "scenarios/test_it.test_suite_smb2.rw"
    assert (directory / "smb2.rw-smbdirect.subunit").read_bytes() == run.output
    assert (directory / "smbd-log.client.log").read_text() == "smb2.rw\n"
    assert (run.results / "smbd" / "log.client").exists()
    assert run.json()["notes"] == ["smb2.rw: no test is named gone"]
    out, err = capfd.readouterr()
    assert "PASS test_it.py::test_suite[smb2.rw]" in err
    assert ": 3 passed, 1 knownfail" in err
    assert "note: smb2.rw: no test is named gone" in out


def test_expectations_of_one_type_of_rdma_link(torture_run: Run) -> None:
    (torture_run.scenarios / "smbtorture" / "knownfail.toml").write_text(
        KNOWNFAIL + 'rdma = ["siw"]\n'
    )
    torture_run.rdma = RdmaType.SIW
    assert torture_run.main() is ExitStatus.PASSED
    assert torture_run.scenario("::invalid[smbdirect]")["outcome"] == "knownfail"
    assert torture_run.json()["notes"] == ["smb2.rw: no test is named gone"]


@pytest.mark.parametrize("rdma", [RdmaType.RXE, None])
def test_expectations_of_another_type_of_rdma_link(torture_run: Run, rdma: RdmaType | None) -> None:
    (torture_run.scenarios / "smbtorture" / "knownfail.toml").write_text(
        KNOWNFAIL + 'rdma = ["siw"]\n'
    )
    torture_run.rdma = rdma
    assert torture_run.main() is ExitStatus.FAILED
    assert torture_run.scenario("::invalid[smbdirect]")["outcome"] == "failed"
    assert torture_run.json()["notes"] == []


def test_some_tests_of_a_suite(torture_run: Run) -> None:
    torture_run.write(
        TORTURE.replace("SMBDIRECT)", "TCP, tests=['rw1', 'rw2', 'append', 'invalid'])")
    )
    assert torture_run.main() is ExitStatus.PASSED
    assert torture_run.commands[0][-5:-2] == ["--format=subunit", "smb2.rw.rw1", "smb2.rw.rw2"]
    assert torture_run.json()["notes"] == []


def test_fewer_tests_of_a_suite_than_asked_for(torture_run: Run) -> None:
    torture_run.write(TORTURE.replace("SMBDIRECT)", "TCP, tests=list('abcde'))"))
    assert torture_run.main() is ExitStatus.FAILED
    assert "truncated: 4 of 5" in torture_run.scenario("test_suite[smb2.rw]")["message"]


def test_unexpected_failures_of_smbtorture_fail(torture_run: Run) -> None:
    (torture_run.scenarios / "smbtorture" / "knownfail.toml").write_text(
        KNOWNFAIL.replace("invalid", "append")
    )
    assert torture_run.main() is ExitStatus.FAILED
    assert torture_run.scenario("test_suite[smb2.rw]")["outcome"] == "passed"
    assert "expected NT_STATUS_DISK_FULL" in torture_run.scenario("::invalid[smbdirect]")["message"]
    assert (
        "passed, but knownfail.toml says" in torture_run.scenario("::append[smbdirect]")["message"]
    )
    assert torture_run.junit()["invalid[smbdirect]"].find("failure") is not None
    directory = "scenarios/test_it.test_suite_smb2.rw"
    assert torture_run.scenario("::invalid[smbdirect]")["directory"] == directory
    page = (torture_run.results / "report.html").read_text()
    assert f'href="{directory}/smb2.rw-smbdirect.subunit"' in page


@pytest.mark.parametrize(
    ("keep", "status", "message"),
    [
        (0, 1, "smbtorture smb2.rw: smbtorture produced no results"),
        (450, 134, "ended with status 134 (signal 6)"),
        (None, 0, "ended with status 0 although a test failed"),
    ],
)
def test_smbtorture_that_cannot_be_trusted_fails_the_scenario(
    torture_run: Run, keep: int | None, status: int, message: str
) -> None:
    torture_run.output, torture_run.status = torture_run.output[:keep], status
    assert torture_run.main() is ExitStatus.FAILED
    said = torture_run.scenario("test_suite[smb2.rw]")["message"]
    assert message in said
    assert "said on stderr" in said


def test_malformed_expectations_cost_nothing(torture_run: Run) -> None:
    (torture_run.scenarios / "smbtorture" / "knownfail.toml").write_text("[[expect]]\nsuit = 1")
    with pytest.raises(UsageError, match=r"knownfail\.toml: expect 1"):
        torture_run.main()
    assert torture_run.machine is None
