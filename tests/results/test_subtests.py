"""smbtorture's output, recorded from Samba 4.24.7, and what is expected of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.helpers.paths import DATA

from smbdirect_testbed.config.spec import Transport
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import UsageError
from smbdirect_testbed.results.knownfail import Expectations
from smbdirect_testbed.results.results import Outcome
from smbdirect_testbed.results.subtests import Subtest
from smbdirect_testbed.results.subunit import parse

SAMPLES = DATA / "smbtorture"
ALL = sorted(p.stem for p in SAMPLES.glob("*.subunit"))


def sample(suite: str) -> bytes:
    return (SAMPLES / f"{suite}.subunit").read_bytes()


@pytest.mark.parametrize(
    ("suite", "announced", "counts"),
    [
        ("smb2.connect", None, {Outcome.PASSED: 1}),
        ("smb2.read", 5, {Outcome.PASSED: 4, Outcome.SKIPPED: 1}),
        ("smb2.rw", 4, {Outcome.PASSED: 3, Outcome.FAILED: 1}),
        ("smb2.lock", 26, {Outcome.PASSED: 22, Outcome.SKIPPED: 4}),
        ("smb2.create", 18, {Outcome.PASSED: 13, Outcome.FAILED: 4, Outcome.SKIPPED: 1}),
        ("smb2.credits", 10, {Outcome.PASSED: 3, Outcome.FAILED: 7}),
    ],
)
def test_recorded_suites(suite: str, announced: int | None, counts: dict[Outcome, int]) -> None:
    output = parse(sample(suite), suite)
    assert output.announced == announced
    assert {o: sum(t.outcome is o for t in output.tests) for o in counts} == counts
    assert len(output.tests) == sum(counts.values())
    assert output.problems(1 if Outcome.FAILED in counts else 0) == []


def test_details_and_seconds() -> None:
    tests = {t.name: t for t in parse(sample("smb2.create"), "smb2.create").tests}
    assert tests["quota-fake-file"].message == (
        "source4/torture/smb2/create.c:3730: status was NT_STATUS_ACCESS_DENIED, "
        "expected NT_STATUS_OK: smb2_create failed"
    )
    assert 2 < tests["bench-path-contention-shared"].seconds < 3
    assert tests["path-length"].message.startswith("Interactive Test: Skipping")


@pytest.mark.parametrize("suite", ALL)
def test_a_stream_cut_off_anywhere_is_noticed(suite: str) -> None:
    whole = sample(suite)
    full = parse(whole, suite)
    for length in range(0, len(whole) - 1, 7):
        output = parse(whole[:length], suite)
        assert output.unreadable == ""
        complete = len(output.tests) == len(full.tests)
        lost = [t for t in output.tests if t.broken]
        if complete and not lost:
            continue
        if lost:
            assert lost == [output.tests[-1]]
            assert "the results stop in this test" in lost[0].message
        elif full.announced or not output.tests:
            assert output.problems(0)
            assert output.problems(1)


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (1, "ended with status 1 although no test failed"),
        (139, "ended with status 139 (signal 11)"),
        (-9, "ended with status -9 (signal 9)"),
        (255, "ended with status 255"),
    ],
)
def test_status_contradicts_results(status: int, problem: str) -> None:
    (said,) = parse(sample("smb2.lock"), "smb2.lock").problems(status)
    assert problem in said


def test_no_results() -> None:
    assert parse(b"Failed to connect\n", "smb2.rw").problems(1) == [
        "smbtorture produced no results"
    ]


def test_what_is_no_subunit() -> None:
    output = parse(b"time: yesterday\ntest: one\nsuccess: one\n", "smb2.rw")
    assert [t.name for t in output.tests] == ["one"]
    assert output.problems(0) == ["the results cannot be read: 'time: yesterday'"]


def expectations(tmp_path: Path, text: str) -> Expectations:
    path = tmp_path / "knownfail.toml"
    path.write_text(text)
    return Expectations.load(path)


ENTRY = """
[[expect]]
suite = "smb2.lock"
tests = ["rw-*", "async"]
level = "{}"
reason = "because"
transports = ["smbdirect"]
"""


def test_judging(tmp_path: Path) -> None:
    known = expectations(tmp_path, ENTRY.format("knownfail"))
    flapping = expectations(tmp_path, ENTRY.format("flapping"))
    passed, failed, skipped = Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED

    def judge(
        which: Expectations, outcome: Outcome, name: str = "rw-none", over: str = "smbdirect"
    ) -> Outcome:
        test = Subtest(name, outcome, 0.1, "detail")
        return which.about("smb2.lock", Transport(over)).judge(test).outcome

    assert judge(known, failed) is Outcome.KNOWNFAIL
    assert judge(known, passed) is failed
    assert judge(known, skipped) is skipped
    assert judge(known, failed, "async") is Outcome.KNOWNFAIL
    assert judge(known, failed, "asynchronous") is failed
    assert judge(known, failed, over="tcp") is failed
    assert judge(known, passed, over="tcp") is passed
    assert judge(flapping, failed) is Outcome.KNOWNFAIL
    assert judge(flapping, passed) is passed


def test_what_a_judged_test_says(tmp_path: Path) -> None:
    about = expectations(tmp_path, ENTRY.format("knownfail")).about(
        "smb2.lock", Transport.SMBDIRECT
    )
    test = Subtest("async", Outcome.FAILED, 0.1, "detail")
    assert about.judge(test).message == "knownfail: because\ndetail"
    broken = replace(test, broken=True)
    assert about.judge(broken) == broken
    unexpected = about.judge(replace(test, name="other", message=""))
    assert unexpected.message == "it failed without a message"


def test_unmatched_entries(tmp_path: Path) -> None:
    known = expectations(tmp_path, ENTRY.format("knownfail"))
    tests = [Subtest("rw-none", Outcome.FAILED, 0.1)]
    assert known.about("smb2.lock", Transport.SMBDIRECT).unmatched(tests) == [
        "smb2.lock: no test is named async"
    ]
    assert known.about("smb2.lock", Transport.TCP).unmatched(tests) == []
    assert known.about("smb2.read", Transport.SMBDIRECT).unmatched(tests) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[expect]\n", "line 1"),
        ("[[expects]]\n", "unknown key expects"),
        ("expect = 1\n", "expect: Input should be a valid list"),
        (ENTRY.format("knownfial"), "expect 1 level: Input should be 'knownfail' or 'flapping'"),
        (ENTRY.format("flapping").replace("smbdirect", "rdma"), "expect 1 transports 1"),
        (ENTRY.format("flapping").replace("because", ""), "expect 1 reason"),
        (ENTRY.format("flapping").replace("reason", "reasno"), "expect 1 rea"),
    ],
)
def test_malformed_entries(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=r"knownfail\.toml") as error:
        expectations(tmp_path, text)
    assert message in error.value.message
    assert "\n" not in error.value.message


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        Expectations.load(tmp_path / "none.toml")


@pytest.mark.parametrize("suite", ALL)
def test_the_projects_expectations_fit_the_recorded_suites(suite: str) -> None:
    ours = Expectations.load(paths.scenarios() / "smbtorture" / "knownfail.toml")
    tests = parse(sample(suite), suite).tests
    for transport in Transport:
        about = ours.about(suite, transport)
        outcomes = {about.judge(t).outcome for t in tests}
        assert Outcome.FAILED not in outcomes
        assert about.unmatched(tests) == []
