"""The pytest plugin, with an environment that is none."""

from __future__ import annotations

import json
import sys
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest

from smbdirect_testbed.errors import ExitStatus, MachineDied, ProvisionError, UsageError
from smbdirect_testbed.kernel_log import KernelLog
from smbdirect_testbed.machine import Machine, SharedDirectory
from smbdirect_testbed.plugin import RunPlugin
from smbdirect_testbed.process import CommandResult
from smbdirect_testbed.progress import Progress
from smbdirect_testbed.smb.server import TESTER
from smbdirect_testbed.smb.transports import SambaTransports
from smbdirect_testbed.spec import (
    CarrierKind,
    EnvironmentSpec,
    HostSpec,
    RdmaType,
    Role,
    ServerKind,
)

WARNING = """\
------------[ cut here ]------------
WARNING: CPU: 1 PID: 211 at fs/smb/smbdirect/connection.c:77 smbdirect_connection_wait+0x1/0x2
Modules linked in: smbdirect(OE)
Call Trace:
 <TASK>
 smbdirect_connection_wait+0x1/0x2 [smbdirect]
 </TASK>
---[ end trace 0000000000000000 ]---
"""
PANIC = """\
BUG: unable to handle page fault for address: ffffc900000000ff
Call Trace:
 <TASK>
 smbdirect_socket_release+0x12/0x80 [smbdirect_socket]
 </TASK>
Kernel panic - not syncing: Fatal exception
"""


class FakeMachine(Machine):
    """A console file, and commands that scenarios give meaning to."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        console = directory / "console"
        console.touch()
        super().__init__("fake", SharedDirectory(directory, PurePosixPath("/testbed")), console)
        self.died: str | None = None

    def argv(self, command: Sequence[str], *, tty: bool = False) -> list[str]:
        raise NotImplementedError

    def death(self) -> str | None:
        return self.died

    def says(self, text: str) -> None:
        with self.console.open("a") as file:
            file.write(text)

    def panics(self) -> None:
        self.says(PANIC)
        self.died = "Kernel panic - not syncing: Fatal exception"
        self.raise_if_dead()

    def run(
        self,
        command: Sequence[str],
        *,
        input: str | bytes | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> CommandResult:
        self.raise_if_dead()
        if "/dev/kmsg" in command:
            assert isinstance(input, bytes)
            self.says(input.decode())
        return CommandResult(tuple(command), 0, "", "")


class Run:
    """One run of scenarios written by a test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.scenarios = directory / "scenarios"
        self.scenarios.mkdir()
        self.results = directory / "results" / "20261122-081530-fake-0000"
        self.machine: FakeMachine | None = None
        self.provide: Callable[[], Any] = self.provided
        self.torn_down = False
        self.smbd = False
        self.rdma: RdmaType | None = RdmaType.RXE
        self.output = b""
        self.status = 0
        self.commands: list[list[str]] = []

    def client_runs(self, command: list[str], **_: Any) -> CommandResult:
        self.commands.append(command)
        assert self.machine
        (self.machine.shared.here / "smbd" / "log.client").open("a").write(f"{command[-1]}\n")
        return CommandResult(tuple(command), self.status, self.output.decode(), "said on stderr")

    def write(self, text: str, name: str = "test_it.py") -> None:
        (self.scenarios / name).write_text(textwrap.dedent(text))

    @contextmanager
    def provided(self) -> Iterator[Any]:
        self.machine = machine = FakeMachine(self.directory / "instance")
        spec = EnvironmentSpec(
            name="fake",
            description="none",
            carrier=CarrierKind.VM,
            image="none",
            hosts=(HostSpec(name="client", role=Role.CLIENT),),
            links=(),
        )
        logs = machine.shared.here / "smbd"
        logs.mkdir()
        smbd = SimpleNamespace(
            kind=ServerKind.SMBD,
            logs=logs,
            unc=lambda client: "//10.7.0.1/share",
            account=TESTER,
            samba=SambaTransports(PurePosixPath("/testbed/driver/smbdirect-run")),
            host=None,
        )
        end = SimpleNamespace(rdma=self.rdma)
        client = SimpleNamespace(run=self.client_runs, end_towards=lambda peer: end)
        try:
            yield SimpleNamespace(
                spec=spec,
                machine=machine,
                hosts={},
                servers={ServerKind.SMBD: smbd} if self.smbd else {},
                host=lambda role: client,
                machines={"machine": machine},
                kernel_logs={"machine": KernelLog(machine)},
                death=machine.death,
                image=SimpleNamespace(packages={"samba": "4.24"}),
                facts=lambda: {"environment": "fake", "samba": "4.24"},
            )
        finally:
            self.torn_down = True

    def main(self, *paths: str, expression: str | None = None) -> ExitStatus:
        sys.modules.pop("test_it", None)  # of another test of this process
        self.plugin = RunPlugin(
            lambda: self.provide(),
            self.results,
            Progress(),
            environment="fake",
        )
        return self.plugin.main(paths or [str(self.scenarios)], expression)

    def json(self) -> dict[str, Any]:
        found = json.loads((self.results / "run.json").read_text())
        assert isinstance(found, dict)
        return found

    def scenario(self, name: str) -> dict[str, Any]:
        """The only scenario in run.json whose id ends with this."""
        (found,) = [s for s in self.json()["scenarios"] if s["id"].endswith(name)]
        assert isinstance(found, dict)
        return found

    def junit(self) -> dict[str, ET.Element]:
        root = ET.parse(self.results / "junit.xml").getroot()
        return {e.attrib["name"]: e for e in root.iter("testcase")}

    def complete(self) -> bool:
        latest = self.results.parent / "latest"
        names = ("run.json", "junit.xml", "report.html")
        return latest.resolve() == self.results and all((latest / n).exists() for n in names)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_all_pass(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run.write(
        """
        def test_one(environment, scenario_log):
            assert environment.spec.name == "fake"
            (scenario_log / "mine.log").write_text("kept")

        def test_two():
            print("nobody sees this")
        """
    )
    assert run.main() is ExitStatus.PASSED
    assert run.complete()
    assert run.torn_down
    document = run.json()
    assert document["verdict"] == "passed"
    assert document["counts"]["passed"] == 2
    assert document["environment"]["samba"] == "4.24"
    assert len(document["environment"]["packages_digest"]) == 64
    assert document["timings"]["first_scenario_s"] >= 0
    assert run.scenario("test_one")["directory"] == "scenarios/test_it.test_one"
    assert (run.results / "scenarios/test_it.test_one/mine.log").read_text() == "kept"
    assert run.scenario("test_two")["directory"] == ""
    properties = ET.parse(run.results / "junit.xml").getroot().iter("property")
    assert ("samba", "4.24") in {(p.attrib["name"], p.attrib["value"]) for p in properties}
    out, err = capfd.readouterr()
    assert "PASS test_it.py::test_one 0.0 s" in err
    assert "nobody sees this" not in out + err
    assert "passed: 2 of 2 passed, none failed" in out
    assert "smbdirect-testbed up fake, then smbdirect-testbed shell" in out


def test_failure_is_explained(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run.write(
        """
        def test_bad():
            print("<script>alert(1)</script>")
            assert 1 + 1 == 3, "arithmetic & more"
        """
    )
    assert run.main() is ExitStatus.FAILED
    assert run.scenario("test_bad")["message"].startswith("AssertionError: arithmetic & more")
    page = (run.results / "report.html").read_text()
    assert "arithmetic &amp; more" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "assert (1 + 1) == 3" in capfd.readouterr().out


def test_expected_errors_need_no_traceback(run: Run) -> None:
    run.write(
        """
        from smbdirect_testbed.capture import TransportNotProven
        from smbdirect_testbed.errors import CommandFailed

        def test_command():
            raise CommandFailed(["smbclient", "-L"], 1, "NT_STATUS_IO_TIMEOUT")

        def test_transport():
            raise TransportNotProven("SMB went over TCP, not SMB-Direct")
        """
    )
    assert run.main() is ExitStatus.FAILED
    message = run.scenario("test_command")["message"]
    assert message.startswith("command failed with status 1: smbclient -L\nNT_STATUS_IO_TIMEOUT")
    assert message.endswith("test_it.py:6")
    assert run.scenario("test_transport")["message"].startswith("SMB went over TCP")


def test_kernel_report_fails_the_scenario_it_belongs_to(run: Run) -> None:
    run.write(
        f"""
        import pytest
        WARNING = {WARNING!r}

        def test_before(environment):
            pass

        def test_guilty(environment):
            environment.machine.says(WARNING)

        @pytest.fixture
        def late(environment):
            yield
            environment.machine.says(WARNING)

        def test_guilty_at_teardown(late):
            pass

        def test_after(environment):
            environment.machine.says("a line of no interest\\n")
        """
    )
    assert run.main() is ExitStatus.FAILED
    outcomes = {s["id"].rpartition("::")[2]: s["outcome"] for s in run.json()["scenarios"]}
    assert outcomes == {
        "test_before": "passed",
        "test_guilty": "failed",
        "test_guilty_at_teardown": "failed",
        "test_after": "passed",
    }
    for name in ("test_guilty", "test_guilty_at_teardown"):
        result = run.scenario(name)
        assert result["message"].startswith("kernel WARNING: WARNING: CPU: 1 PID: 211")
        assert "smbdirect_connection_wait+0x1/0x2 [smbdirect]" in result["message"]
        log = (run.results / result["directory"] / "kernel.log").read_text()
        assert log.count("cut here") == 1
    failure = run.junit()["test_guilty"].find("failure")
    assert failure is not None
    assert "smbdirect_connection_wait" in (failure.text or "")
    assert (run.results / "kernel.log").read_text().count("cut here") == 2


def test_known_mistakes_of_the_kernel(run: Run) -> None:
    """Are known failures, and failures when they are not made, or when there are others."""
    run.write(
        f"""
        import pytest
        WARNING = {WARNING!r}
        known = pytest.mark.kernel_mistake("smbdirect_connection_wait", "it waits")

        @known
        def test_made(environment):
            environment.machine.says(WARNING)

        @known
        def test_not_made():
            pass

        @known
        def test_another(environment):
            environment.machine.says(WARNING.replace("connection_wait", "other"))

        @known
        def test_wrong_besides(environment):
            environment.machine.says(WARNING)
            assert 1 == 2
        """
    )
    assert run.main() is ExitStatus.FAILED
    outcomes = {s["id"].rpartition("::")[2]: s["outcome"] for s in run.json()["scenarios"]}
    assert outcomes == {
        "test_made": "knownfail",
        "test_not_made": "failed",
        "test_another": "failed",
        "test_wrong_besides": "failed",
    }
    assert "take the mark" in run.scenario("test_not_made")["message"]
    assert run.scenario("test_made")["message"] == "it waits"


def test_kernel_reports_outside_of_scenarios_fail_the_run(run: Run) -> None:
    run.write("def test_fine(): pass")

    @contextmanager
    def provide() -> Iterator[Any]:
        with run.provided() as environment:
            environment.machine.says(WARNING)
            yield environment
            environment.machine.says(WARNING)

    run.provide = provide
    assert run.main() is ExitStatus.FAILED
    assert run.scenario("test_fine")["outcome"] == "passed"
    assert run.scenario("environment::provide")["message"].startswith("kernel WARNING")
    assert run.scenario("environment::teardown")["message"].startswith("kernel WARNING")
    assert run.junit().keys() == {"provide", "test_fine", "teardown"}


def test_machine_dies(run: Run) -> None:
    run.write(
        """
        import pytest

        @pytest.fixture(scope="session", autouse=True)
        def needs_the_machine_at_the_end(environment):
            yield
            environment.machine.run(["true"])

        def test_before(): pass

        def test_fatal(environment):
            environment.machine.panics()

        def test_later(): pass

        def test_last(): pass
        """
    )
    assert run.main() is ExitStatus.FAILED
    assert run.complete()
    assert run.torn_down
    message = run.scenario("test_fatal")["message"]
    assert message.startswith("machine died: Kernel panic - not syncing: Fatal exception")
    assert "smbdirect_socket_release+0x12/0x80" in message
    assert run.json()["counts"] == {
        "passed": 1,
        "failed": 1,
        "skipped": 0,
        "knownfail": 0,
        "not run": 2,
    }
    assert "the machine died in" in run.scenario("test_last")["message"]
    assert run.junit()["test_last"].find("skipped") is not None
    assert run.junit()["test_last"].find("error") is None


def test_not_provided(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run.write("def test_one(): pass")

    def provide() -> Any:
        raise ProvisionError("the mirror does not answer", hint="set another", detail="E: 404")

    run.provide = provide
    assert run.main() is ExitStatus.NOT_PROVIDED
    assert run.complete()
    assert run.json()["verdict"] == "not provided"
    assert run.json()["reason"] == "the mirror does not answer"
    assert run.scenario("test_one")["outcome"] == "not run"
    assert "E: 404" in run.scenario("environment::provide")["message"]
    assert "set another" in capfd.readouterr().out


def test_machine_dies_while_it_is_provided(run: Run) -> None:
    run.write("def test_one(): pass")

    def provide() -> Any:
        raise MachineDied("machine vm died: Kernel panic")

    run.provide = provide
    assert run.main() is ExitStatus.NOT_PROVIDED
    assert run.complete()


def test_interrupted(run: Run) -> None:
    run.write(
        """
        import pytest

        @pytest.fixture(scope="session")
        def used(environment):
            yield
            (environment.machine.shared.here.parent / "order").write_text("fixture")

        def test_one(used): pass

        def test_two(used):
            raise KeyboardInterrupt

        def test_three(): pass
        """
    )

    @contextmanager
    def provide() -> Iterator[Any]:
        with run.provided() as environment:
            yield environment
            assert (run.directory / "order").read_text() == "fixture"

    run.provide = provide
    assert run.main() is ExitStatus.INTERRUPTED
    assert run.complete()
    assert run.torn_down
    assert run.json()["verdict"] == "interrupted"
    assert [s["outcome"] for s in run.json()["scenarios"]] == ["passed", "not run", "not run"]
    assert run.scenario("test_three")["message"] == "interrupted"
    assert set(run.junit()) == {"test_one", "test_two", "test_three"}


def test_interrupted_while_provided(run: Run) -> None:
    run.write("def test_one(): pass")

    def provide() -> Any:
        raise KeyboardInterrupt

    run.provide = provide
    assert run.main() is ExitStatus.INTERRUPTED
    assert run.complete()


@pytest.mark.parametrize(
    ("text", "path", "expression", "message"),
    [
        ("def test_one(): pass", "", "nothing_like_it", "no scenario matches"),
        ("def test_one(): pass", "test_it.py::test_none", None, "not found"),
        ("def test_one(): pass", "test_none.py", None, "there is no scenario"),
        ("def test_one(): pass", "", "one and (", "expected"),
        ("def test_one(:", "", None, "cannot be read"),
        ("import nothing_like_it", "", None, "cannot be read"),
        (
            "import pytest\n@pytest.mark.needs('rxf')\ndef test_one(): pass",
            "",
            None,
            "there is no such feature",
        ),
        ("import pytest\n@pytest.mark.neds('rxe')\ndef test_one(): pass", "", None, "be read"),
    ],
)
def test_usage_errors_cost_nothing(
    run: Run,
    text: str,
    path: str,
    expression: str | None,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run.write(text)
    with pytest.raises(UsageError, match=message.replace("(", r"\(")) as error:
        run.main(f"{run.scenarios}/{path}", expression=expression)
    assert "\n" not in error.value.message
    assert run.machine is None
    assert not run.results.parent.exists()
    assert "".join(capfd.readouterr()) == ""


def test_usage_error_of_the_environment(run: Run) -> None:
    run.write("def test_one(): pass")

    def provide() -> Any:
        raise UsageError("there is no image none")

    run.provide = provide
    with pytest.raises(UsageError, match="there is no image"):
        run.main()
    assert not run.results.exists()


def test_skips(run: Run) -> None:
    run.write(
        """
        import pytest

        @pytest.mark.needs("smbd", "rxe")
        def test_marked(): raise AssertionError

        def test_fixture(smbd): raise AssertionError
        """
    )
    assert run.main() is ExitStatus.FAILED
    assert run.json()["reason"] == "every scenario was skipped, so nothing was tested"
    assert run.scenario("test_marked")["message"] == "environment fake has no smbd and no rxe"
    assert run.scenario("test_fixture")["message"] == "environment fake has no smbd"


def test_error_of_the_testbed_leaves_results(run: Run) -> None:
    run.write("def test_one(): pass")

    def provide() -> Any:
        raise RuntimeError("bug")

    run.provide = provide
    with pytest.raises(RuntimeError, match="bug"):
        run.main()
    assert run.json()["verdict"] == "failed"


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
