"""The pytest plugin, with a fake environment."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.helpers.plugin_run import WARNING, Run

from smbdirect_testbed.config.spec import ServerKind, ServerSpec, Transport
from smbdirect_testbed.lib.errors import ExitStatus, MachineDied, ProvisionError, UsageError
from smbdirect_testbed.lib.version import own_version


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
    assert document["environment"]["testbed"] == own_version()
    assert document["environment"]["samba"] == "4.24"
    assert document["timings"]["first_scenario_s"] >= 0
    assert run.scenario("test_one")["directory"] == "scenarios/test_it.test_one"
    assert (run.results / "scenarios/test_it.test_one/mine.log").read_text() == "kept"
    assert run.scenario("test_two")["directory"] == ""
    properties = ET.parse(run.results / "junit.xml").getroot().iter("property")
    assert ("samba", "4.24") in {(p.attrib["name"], p.attrib["value"]) for p in properties}
    out, err = capfd.readouterr()
    assert re.search(r"PASS test_it.py::test_one 0\.\d s", err)
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
        from smbdirect_testbed.evidence.capture import TransportNotProven
        from smbdirect_testbed.lib.errors import CommandFailed

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


def test_the_first_cause_is_told_and_not_the_last(run: Run) -> None:
    run.write(
        """
        from contextlib import contextmanager
        from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError

        @contextmanager
        def mounted():
            try:
                yield
            finally:
                raise CommandFailed(["umount", "/mnt"], 32, "target is busy")

        def test_write():
            with mounted():
                raise CommandFailed(["dd", "of=/mnt/x"], 1, "Host is down")

        def test_assertion():
            with mounted():
                assert 1 == 2, "the sums differ"

        def test_in_other_words():
            with mounted():
                try:
                    raise OSError("no route")
                except OSError as e:
                    raise ProvisionError("the server cannot be reached") from e
        """
    )
    assert run.main() is ExitStatus.FAILED
    for name, first in {
        "test_write": "command failed with status 1: dd of=/mnt/x\nHost is down",
        "test_assertion": "AssertionError: the sums differ",
        "test_in_other_words": "the server cannot be reached",
    }.items():
        message = run.scenario(name)["message"]
        assert message.startswith(first)
        assert "then, while that was undone: command failed with status 32: umount" in message
    assert run.scenario("test_write")["message"].endswith("test_it.py:14")


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
        assert "smbdirect_connection_wait+0x1/0x2" in result["message"].splitlines()[0]
        assert "fingerprint: WARNING:smbdirect_connection_wait" in result["message"]
        log = (run.results / result["directory"] / "kernel.log").read_text()
        assert log.count("cut here") == 1
    failure = run.junit()["test_guilty"].find("failure")
    assert failure is not None
    assert "smbdirect_connection_wait" in (failure.text or "")
    assert (run.results / "kernel.log").read_text().count("cut here") == 2
    # The second time the trace is not shown again.
    assert "Call Trace:" in run.scenario("test_guilty")["message"]
    later = run.scenario("test_guilty_at_teardown")["message"]
    assert "Call Trace:" not in later
    assert "the same as in" in later
    (reported,) = run.json()["kernel_reports"]
    assert reported["fingerprint"] == "WARNING:smbdirect_connection_wait"
    assert reported["weight"] == "failure"
    assert reported["count"] == 2
    assert [id.rpartition("::")[2] for id in reported["scenarios"]] == [
        "test_guilty",
        "test_guilty_at_teardown",
    ]
    assert "WARNING:smbdirect_connection_wait" in (run.results / "report.html").read_text()


def test_a_known_report_fails_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    known = run.directory / "known-splats.toml"
    known.write_text(
        """
        [[known]]
        fingerprint = "WARNING:smbdirect_connection_*"
        reason = "it warns of nothing"
        upstream = "https://example.org/1"

        [[known]]
        fingerprint = "oops:never"
        reason = "it is gone"
        upstream = "https://example.org/2"
        """
    )
    for module in ("evidence", "publish"):
        monkeypatch.setattr(f"smbdirect_testbed.plugin.{module}.known_file", lambda: known)
    run.write(
        f"""
        def test_it(environment):
            environment.machine.says({WARNING!r})
        """
    )
    assert run.main() is ExitStatus.PASSED
    (reported,) = run.json()["kernel_reports"]
    assert reported["weight"] == "known"
    assert reported["reason"] == "it warns of nothing (https://example.org/1)"
    notes = run.json()["notes"]
    assert any("it warns of nothing" in note for note in notes)
    assert any("oops:never was not reported" in note for note in notes)


def test_known_splats(run: Run) -> None:
    """Are known failures, and failures when they are not made, or when there are others."""
    run.write(
        f"""
        import pytest
        WARNING = {WARNING!r}
        known = pytest.mark.known_splat("smbdirect_connection_wait", "it waits")
        random = pytest.mark.known_splat(*known.args, sometimes=True)

        @random
        def test_random_made(environment):
            environment.machine.says(WARNING)

        @random
        def test_random_not_made():
            pass

        @known
        def test_made(environment):
            environment.machine.says(WARNING)

        @known
        def test_not_made():
            pass

        @known
        def test_not_tried():
            pytest.skip("not here")

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
        "test_random_made": "knownfail",
        "test_random_not_made": "passed",
        "test_made": "knownfail",
        "test_not_made": "failed",
        "test_not_tried": "skipped",
        "test_another": "failed",
        "test_wrong_besides": "failed",
    }
    assert "take the mark" in run.scenario("test_not_made")["message"]
    assert run.scenario("test_made")["message"] == "it waits"
    assert run.json()["notes"] == []


def test_the_old_name_of_a_marker_works_and_a_note_has_the_new_one(run: Run) -> None:
    run.write(
        f"""
        import pytest
        old = pytest.mark.kernel_mistake("smbdirect_connection_wait", "it waits")

        @old
        def test_made(environment):
            environment.machine.says({WARNING!r})

        @pytest.fixture
        def marked(request):
            request.applymarker(old)

        def test_not_made(marked):
            pass
        """
    )
    assert run.main() is ExitStatus.FAILED
    assert run.scenario("test_made")["outcome"] == "knownfail"
    assert run.scenario("test_not_made")["outcome"] == "failed"
    note = (
        "test_it.py: the marker kernel_mistake is called known_splat now; the old name works, too"
    )
    assert run.json()["notes"] == [note]


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
    assert {n: c for n, c in run.json()["counts"].items() if c} == {"passed": 3, "failed": 1}
    assert run.times_provided == 2
    assert "smbdirect_socket_release" in (run.results / "kernel.log").read_text()
    assert "smbdirect_socket_release" not in (run.results / "kernel.2.log").read_text()
    assert any("test_fatal broke its machine: Kernel panic" in n for n in run.json()["notes"])


def test_machine_dies_just_after_a_scenario(run: Run) -> None:
    run.write(
        """
        def test_before(environment):
            environment.machine.last_mark = "test_fatal"

        def test_fatal(): pass

        def test_later(): pass
        """
    )
    assert run.main() is ExitStatus.FAILED
    assert run.complete()
    message = run.scenario("test_fatal")["message"]
    assert message.startswith("machine died: Kernel panic - not syncing: Fatal exception")
    assert "smbdirect_socket_release+0x12/0x80" in message
    assert [s["outcome"] for s in run.json()["scenarios"]] == ["passed", "failed", "passed"]
    assert (
        "smbdirect_socket_release"
        in (run.results / "scenarios" / "test_it.test_fatal" / "kernel.log").read_text()
    )
    assert "environment::teardown" not in {s["id"] for s in run.json()["scenarios"]}


def test_what_lives_longer_than_a_scenario_is_set_up_once_more(run: Run) -> None:
    run.write(
        """
        import pytest

        @pytest.fixture(scope="module")
        def machine(environment):
            yield environment.machine

        @pytest.mark.parametrize("number", range(6))
        def test_it(machine, environment, number):
            assert machine is environment.machine
            assert not machine.died
            if number in (1, 4):
                machine.panics()
        """
    )
    assert run.main() is ExitStatus.FAILED
    outcomes = [s["outcome"] for s in run.json()["scenarios"]]
    assert outcomes == ["passed", "failed", "passed", "passed", "failed", "passed"]
    assert run.times_provided == 3


def test_a_driver_that_kills_every_machine_ends_soon(run: Run) -> None:
    run.write(
        """
        import pytest

        @pytest.mark.parametrize("number", range(9))
        def test_it(environment, number):
            environment.machine.panics()
        """
    )
    assert run.main() is ExitStatus.FAILED
    assert run.complete()
    outcomes = [s["outcome"] for s in run.json()["scenarios"]]
    assert outcomes == ["failed"] * 3 + ["not run"] * 6
    assert run.json()["reason"].startswith("3 scenarios in a row broke their machines")
    assert run.junit()["test_it[8]"].find("skipped") is not None
    assert run.junit()["test_it[8]"].find("error") is None


def test_what_stands_on_something_red_is_not_run(run: Run) -> None:
    run.write(
        """
        import pytest
        pytestmark = pytest.mark.stands_on("test_socket.py")

        def test_above(): pass
        """,
        "test_above.py",
    )
    run.write(
        """
        import pytest
        pytestmark = pytest.mark.stands_on("test_above.py")
        from smbdirect_testbed.config.spec import Transport

        @pytest.mark.parametrize("transport", [Transport.TCP, Transport.SMBDIRECT])
        def test_highest(transport): pass
        """,
        "test_highest.py",
    )
    run.write(
        """
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(number):
            assert number % 2
        """,
        "test_socket.py",
    )
    run.write("def test_alone(): pass", "test_zero.py")
    assert run.main() is ExitStatus.FAILED
    assert [(s["id"], s["outcome"]) for s in run.json()["scenarios"]] == [
        ("test_socket.py::test_it[0]", "failed"),
        ("test_socket.py::test_it[1]", "passed"),
        ("test_socket.py::test_it[2]", "failed"),
        ("test_socket.py::test_it[3]", "passed"),
        ("test_zero.py::test_alone", "passed"),
        ("test_above.py::test_above", "not run"),
        ("test_highest.py::test_highest[tcp]", "passed"),
        ("test_highest.py::test_highest[smbdirect]", "not run"),
    ]
    message = run.scenario("test_above")["message"]
    assert message == "it stands on test_socket.py, where test_it[0] failed, and others"
    run.start_over()
    run.options["run_all"] = True
    assert run.main() is ExitStatus.FAILED
    assert run.json()["counts"]["not run"] == 0


def test_what_mostly_breaks_machines_is_not_tried_to_the_end(run: Run) -> None:
    run.write(
        """
        import pytest

        @pytest.mark.parametrize("number", range(9))
        def test_it(environment, number):
            if number not in (1, 5):
                environment.machine.panics()
        """
    )
    assert run.main() is ExitStatus.FAILED
    outcomes = [s["outcome"] for s in run.json()["scenarios"]]
    assert outcomes == ["failed", "passed", "failed", "failed"] + ["not run"] * 5


def test_at_most_so_many_failures(run: Run) -> None:
    run.write(
        """
        import pytest

        @pytest.mark.parametrize("number", range(5))
        def test_it(number):
            assert number == 0
        """
    )
    run.options["maxfail"] = 2
    assert run.main() is ExitStatus.FAILED
    outcomes = [s["outcome"] for s in run.json()["scenarios"]]
    assert outcomes == ["passed", "failed", "failed", "not run", "not run"]
    assert run.json()["reason"] == "the run ends after 2 failures"


def test_a_fresh_machine_that_cannot_be_had(run: Run) -> None:
    run.write(
        """
        def test_one(environment):
            environment.machine.panics()

        def test_two(): pass
        """
    )

    @contextmanager
    def provide() -> Iterator[Any]:
        if run.times_provided:
            raise ProvisionError("no memory left")
        with run.provided() as environment:
            yield environment

    run.provide = provide
    assert run.main() is ExitStatus.FAILED
    assert run.complete()
    assert run.scenario("test_two")["message"] == "there is no fresh machine: no memory left"
    assert run.scenario("environment::provide-2")["outcome"] == "failed"


def test_what_a_failed_scenario_left_undone_costs_no_other(run: Run) -> None:
    run.write(
        """
        def test_unloads(environment):
            environment.driver_is_loaded = False
            raise RuntimeError("it cannot be loaded again")

        def test_next(environment):
            assert environment.driver_is_loaded
        """
    )
    assert run.main() is ExitStatus.FAILED
    assert [s["outcome"] for s in run.json()["scenarios"]] == ["failed", "passed"]
    assert any("smbdirect is not loaded" in note for note in run.json()["notes"])


def test_a_kernel_that_cannot_be_trusted_is_replaced(run: Run) -> None:
    run.write(
        """
        def test_bug(environment):
            environment.machine.says("BUG: KASAN: slab-use-after-free in smbdirect_x+0x1/0x2\\n")

        def test_next(environment): pass
        """
    )
    assert run.main() is ExitStatus.FAILED
    assert [s["outcome"] for s in run.json()["scenarios"]] == ["failed", "passed"]
    assert run.times_provided == 2


def test_a_scenario_that_stands_still(run: Run) -> None:
    run.write(
        """
        import pytest, time

        @pytest.mark.deadline(0.5)
        def test_hangs(environment):
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                environment.machine.raise_if_dead()
                time.sleep(0.01)

        def test_next(environment): pass
        """
    )
    begun = time.monotonic()
    assert run.main() is ExitStatus.FAILED
    assert time.monotonic() - begun < 15
    assert [s["outcome"] for s in run.json()["scenarios"]] == ["failed", "passed"]
    assert run.scenario("test_hangs")["message"].startswith("it did not end in")
    assert (run.results / "scenarios/test_it.test_hangs/hang.log").exists()


def test_a_server_that_crashes_fails_the_scenario(run: Run) -> None:
    run.smbd = True
    run.write(
        """
        CRASH = "INTERNAL ERROR: Signal 11: Segmentation fault in smbd (smbd) pid 812\\n"
        STACK = "BACKTRACE: 21 stack frames:\\n #0 smbd_smb2_request_process_read+0x40\\n"

        def test_before(): pass

        def test_crash(smbd):
            (smbd.logs / "log.smbd").open("a").write(f"====\\n{CRASH}====\\n{STACK}")

        def test_after(smbd):
            (smbd.logs / "log.smbd").open("a").write("closed connection to service share\\n")
        """
    )
    assert run.main() is ExitStatus.FAILED
    assert [s["outcome"] for s in run.json()["scenarios"]] == ["passed", "failed", "passed"]
    message = run.scenario("test_crash")["message"]
    assert message.startswith("a server crashed: log.smbd: INTERNAL ERROR: Signal 11")
    assert "smbd_smb2_request_process_read" in message


def test_a_program_that_dies_by_a_signal_fails_the_scenario(run: Run) -> None:
    run.write(
        """
        def test_before(): pass

        def test_crash(environment):
            shared = environment.machine.shared.here
            (shared / "core.11.812.smb\x1b[2J").write_bytes(b"ELF")
            (shared / "core.dump").write_bytes(b"of nobody")
            (shared / "core.6.813.away").symlink_to("/etc/passwd")

        def test_after(): pass
        """
    )
    assert run.main() is ExitStatus.FAILED
    assert [s["outcome"] for s in run.json()["scenarios"]] == ["passed", "failed", "passed"]
    told = "smb\\x1b[2J (process 812) died by SIGSEGV; its core dump is core.smb_x1b_2J.812"
    assert run.scenario("test_crash")["message"].startswith(told)
    directory = run.results / "scenarios/test_it.test_crash"
    assert (directory / "core.smb_x1b_2J.812").read_bytes() == b"ELF"
    assert not list(directory.glob("core.away*"))


def test_what_is_left_behind_fails_its_scenario(run: Run) -> None:
    run.write(
        """
        import pytest

        @pytest.fixture(scope="module")
        def mount(environment):
            environment.census["mount /mnt"] += 1
            yield
            environment.census["mount /mnt"] -= 1

        def test_sets_up_for_others(mount): pass

        def test_uses_it_too(mount): pass

        def test_leaks(mount, environment):
            environment.census["qp of RDMA link rxe"] += 2

        def test_after(mount, environment):
            environment.census["process sleep"] += 1
            environment.gone_later["process sleep"] = 3

        def test_leaves_something_and_fails(environment):
            environment.census["mount /busy"] += 1
            raise RuntimeError("the device is busy")

        def test_on_a_fresh_machine(environment):
            assert environment.census["mount /busy"] == 0
        """
    )
    assert run.main() is ExitStatus.FAILED
    outcomes = [s["outcome"] for s in run.json()["scenarios"]]
    assert outcomes == ["passed", "passed", "failed", "passed", "failed", "passed"]
    assert run.scenario("test_leaks")["message"] == "left behind: 2 qp of RDMA link rxe"
    message = run.scenario("test_leaves_something_and_fails")["message"]
    assert "the device is busy" in message
    assert any("it left behind 1 mount /busy" in note for note in run.json()["notes"])


def test_only_early_scenarios_begin_while_servers_start(run: Run) -> None:
    run.write(
        """
        import pytest

        @pytest.mark.early
        def test_one(environment): pass

        def test_two(environment): pass
        """
    )
    # Who asks for a server is told that it failed; who does not has no reason to fail.
    run.no_servers = ProvisionError("smbd did not start")
    assert run.main() is ExitStatus.PASSED
    assert run.waited_for_servers == 1


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
        (
            "import pytest\n@pytest.mark.needs('nbt')\ndef test_one(): pass",
            "",
            None,
            "of which server",
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


TRANSPORTS = """
import pytest
from smbdirect_testbed.config.spec import Transport

@pytest.mark.parametrize("transport", [Transport.TCP, Transport.NBT])
def test_parameter(smbd, transport): pass

@pytest.mark.parametrize("transports", [[Transport.TCP, Transport.SMBDIRECT]])
def test_list(smbd, transports): pass

@pytest.mark.parametrize("transport", [Transport.NBT])
def test_without_a_server(transport): pass

@pytest.mark.needs("nbt", "smbdirect")
def test_marked(smbd): pass

@pytest.mark.needs("ksmbd", "smbdirect")
def test_of_another_server(): pass
"""


def test_what_a_server_does_not_offer_is_skipped(run: Run) -> None:
    run.smbd = True
    tcp = (Transport.TCP,)
    run.servers = (ServerSpec(kind=ServerKind.SMBD, host="client", transports=tcp),)
    run.write(TRANSPORTS)
    assert run.main() is ExitStatus.PASSED
    seen = {s["id"].rpartition("::")[2]: (s["outcome"], s["message"]) for s in scenarios(run)}
    lacks = "smbd in environment fake does not offer"
    assert seen == {
        "test_parameter[tcp]": ("passed", ""),
        "test_parameter[nbt]": ("skipped", f"{lacks} nbt"),
        "test_list[transports0]": ("skipped", f"{lacks} smbdirect"),
        "test_without_a_server[nbt]": ("passed", ""),
        "test_marked": ("skipped", f"{lacks} nbt and smbdirect"),
        "test_of_another_server": ("skipped", "environment fake has no ksmbd"),
    }


def test_all_transports_are_offered(run: Run) -> None:
    run.smbd = True
    run.servers = (ServerSpec(kind=ServerKind.SMBD, host="client"),)
    run.write(TRANSPORTS)
    assert run.main() is ExitStatus.PASSED
    assert [s["id"] for s in scenarios(run) if s["outcome"] == "skipped"] == [
        "test_it.py::test_of_another_server"
    ]


def scenarios(run: Run) -> list[dict[str, Any]]:
    """All in run.json."""
    found: list[dict[str, Any]] = run.json()["scenarios"]
    return found


def test_error_of_the_testbed_leaves_results(run: Run) -> None:
    run.write("def test_one(): pass")

    def provide() -> Any:
        raise RuntimeError("bug")

    run.provide = provide
    with pytest.raises(RuntimeError, match="bug"):
        run.main()
    assert run.json()["verdict"] == "failed"
