"""smbtorture in scenarios, with a fake machine."""

from __future__ import annotations

import re

import pytest
from tests.helpers.paths import DATA
from tests.helpers.plugin_run import Run

from smbdirect_testbed.config.spec import (
    RdmaType,
)
from smbdirect_testbed.lib.errors import ExitStatus, UsageError

TORTURE = """
import pytest
from smbdirect_testbed.config.spec import Transport

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


class RecordedSuite:
    """Answers as smbtorture did, whichever of the recorded tests are asked for.

    :param keep: how many characters it says before it crashes; None for all
    :param status: what it ends with in place of what it should
    """

    def __init__(self, suite: str) -> None:
        recorded = DATA / "smbtorture" / f"{suite}.subunit"
        self.suite = suite
        self.head, *said = re.split(r"(?m)^(?=test: )", recorded.read_text())
        self.tests = {s.split("\n")[0].removeprefix("test: "): s for s in said}
        self.keep: int | None = None
        self.status: int | None = None

    def answer(self, command: list[str]) -> tuple[int, str]:
        if "--list" in command:
            names = [f"{name}.{name.rpartition('.')[2]}" for name in self.tests]
            return 0, "\n".join(["smbtorture 4.24.7", *names, "smb2.rwother.one.one", ""])
        asked = command[command.index("--fullname") + 1 :]
        if asked == [self.suite]:
            output = "".join([self.head, *self.tests.values()])
        else:
            head = self.head[: self.head.index("progress:")]
            output = "".join([head, *(self.tests[a] for a in asked if a in self.tests)])
        status = self.status if self.status is not None else int("\nfailure: " in output)
        return status, output[: self.keep]


@pytest.fixture
def suite() -> RecordedSuite:
    return RecordedSuite("smb2.rw")


@pytest.fixture
def torture_run(run: Run, suite: RecordedSuite) -> Run:
    run.smbd = True
    run.write(TORTURE)
    (run.scenarios / "smbtorture").mkdir()
    (run.scenarios / "smbtorture" / "knownfail.toml").write_text(KNOWNFAIL)
    run.answer = suite.answer
    return run


def test_each_test_of_smbtorture_is_a_result(
    torture_run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    run = torture_run
    assert run.main() is ExitStatus.PASSED
    smbtorture = [
        "/testbed/driver/smbdirect-run",
        "smbtorture",
        "//10.7.0.1/share",
        "--user=tester%password",
        "--option=client smb transports=tcp:5445",
        "--option=torture:timelimit=2",
        "--format=subunit",
        "--fullname",
    ]
    assert run.commands == [
        ["smbtorture", "--list", "smb2.rw"],
        [*smbtorture, "smb2.rw.rw1", "smb2.rw.rw2", "smb2.rw.append"],
        [*smbtorture, "smb2.rw.invalid"],
    ]
    assert run.waited_until_idle == 1
    assert [(s["id"], s["outcome"], s["suite"]) for s in run.json()["scenarios"]] == [
        ("test_it.py::test_suite[smb2.rw]", "passed", ""),
        ("test_it.py::smb2.rw::rw1[smbdirect]", "passed", "smb2.rw[smbdirect]"),
        ("test_it.py::smb2.rw::rw2[smbdirect]", "passed", "smb2.rw[smbdirect]"),
        ("test_it.py::smb2.rw::append[smbdirect]", "passed", "smb2.rw[smbdirect]"),
        ("test_it.py::smb2.rw::invalid[smbdirect]", "knownfail", "smb2.rw[smbdirect]"),
    ]
    known = run.junit()["invalid[smbdirect]"].find("skipped")
    assert known is not None
    assert known.attrib["type"] == "pytest.xfail"
    assert "answers OK" in known.attrib["message"]
    assert float(run.junit()["rw1[smbdirect]"].attrib["time"]) == pytest.approx(0.368)
    directory = run.results / "scenarios/test_it.test_suite_smb2.rw"
    kept = (directory / "smb2.rw-smbdirect.subunit").read_text()
    assert re.findall(r"(?m)^test: smb2\.rw\.(.+)", kept) == ["rw1", "rw2", "append", "invalid"]
    assert (directory / "smbd-log.client.log").read_text() == (
        "smb2.rw\nsmb2.rw.append\nsmb2.rw.invalid\n"
    )
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
    assert [c[c.index("--fullname") + 1 :] for c in torture_run.commands] == [
        ["smb2.rw.rw1", "smb2.rw.rw2", "smb2.rw.append"],
        ["smb2.rw.invalid"],
    ]
    assert torture_run.json()["notes"] == []


def test_crowded_tests_run_at_the_very_end(torture_run: Run) -> None:
    torture_run.write(TORTURE.replace("SMBDIRECT)", "TCP, crowded=['rw2'])"))
    assert torture_run.main() is ExitStatus.PASSED
    ran = [c[c.index("--fullname") + 1 :] for c in torture_run.commands if "--list" not in c]
    assert ran[1:] == [["smb2.rw.invalid"], ["smb2.rw.rw2"]]
    assert "smb2.rw.rw1" in ran[0]


def test_a_crowded_test_that_the_suite_does_not_have(torture_run: Run) -> None:
    torture_run.write(TORTURE.replace("SMBDIRECT)", "TCP, crowded=['pigeon'])"))
    assert torture_run.main() is ExitStatus.FAILED
    message = torture_run.scenario("test_suite[smb2.rw]")["message"]
    assert "not all that are crowded are tests of smb2.rw: ['pigeon']" in message


def test_fewer_tests_of_a_suite_than_asked_for(torture_run: Run) -> None:
    asked = TORTURE.replace("SMBDIRECT)", "TCP, tests=['rw1', 'rw2', 'rw3'])")
    torture_run.write(asked)
    assert torture_run.main() is ExitStatus.FAILED
    assert "truncated: 2 of 3" in torture_run.scenario("test_suite[smb2.rw]")["message"]


def test_a_suite_of_which_nothing_is_expected(torture_run: Run) -> None:
    (torture_run.scenarios / "smbtorture" / "knownfail.toml").write_text("")
    assert torture_run.main() is ExitStatus.FAILED
    assert [c[-1] for c in torture_run.commands] == ["smb2.rw"]
    assert torture_run.scenario("::invalid[smbdirect]")["outcome"] == "failed"


def test_without_a_file_nothing_is_expected(torture_run: Run) -> None:
    """A scenario's file may lie anywhere, alone."""
    (torture_run.scenarios / "smbtorture" / "knownfail.toml").unlink()
    assert torture_run.main() is ExitStatus.FAILED
    assert [c[-1] for c in torture_run.commands] == ["smb2.rw"]
    assert torture_run.scenario("::invalid[smbdirect]")["outcome"] == "failed"
    assert torture_run.scenario("::rw1[smbdirect]")["outcome"] == "passed"


def test_a_suite_without_tests(torture_run: Run, suite: RecordedSuite) -> None:
    suite.tests.clear()
    assert torture_run.main() is ExitStatus.FAILED
    said = torture_run.scenario("test_suite[smb2.rw]")["message"]
    assert "smbtorture lists no tests of smb2.rw" in said


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
        (350, 134, "ended with status 134 (signal 6)"),
        (None, 0, "ended with status 0 although a test failed"),
    ],
)
def test_smbtorture_that_cannot_be_trusted_fails_the_scenario(
    torture_run: Run, suite: RecordedSuite, keep: int | None, status: int, message: str
) -> None:
    suite.keep, suite.status = keep, status
    assert torture_run.main() is ExitStatus.FAILED
    said = torture_run.scenario("test_suite[smb2.rw]")["message"]
    assert message in said
    assert "said on stderr" in said


def test_malformed_expectations_cost_nothing(torture_run: Run) -> None:
    (torture_run.scenarios / "smbtorture" / "knownfail.toml").write_text("[[expect]]\nsuit = 1")
    with pytest.raises(UsageError, match=r"knownfail\.toml: expect 1"):
        torture_run.main()
    assert torture_run.machine is None
