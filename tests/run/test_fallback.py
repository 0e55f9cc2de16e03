"""A run goes on in another environment when no machine can be started in the default one."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.helpers.kernel_trees import FILES
from tests.helpers.plugin_run import Run

from smbdirect_testbed.config.envfile import load_environment
from smbdirect_testbed.config.spec import DriverOrigin, DriverSpec, EnvironmentSpec
from smbdirect_testbed.lib.errors import (
    CarrierFailed,
    ExitStatus,
    ProvisionError,
    UsageError,
    carrier_failures,
)
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.run import runner
from smbdirect_testbed.run.fallback import ONLY, Attempt, failing
from smbdirect_testbed.run.runner import run_where_machines_start


class Computer:
    """Runs environments, in some of which no machine can be started.

    :param broken: their names
    """

    def __init__(self, *broken: str) -> None:
        self.broken = broken
        self.attempts: list[tuple[str, Attempt]] = []

    def run(self, spec: EnvironmentSpec, attempt: Attempt) -> int:
        self.attempts.append((spec.name, attempt))
        if spec.name not in self.broken:
            return ExitStatus.PASSED
        if CarrierFailed in attempt.raises:
            raise CarrierFailed("libvirt refused")
        return ExitStatus.NOT_PROVIDED


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda _, text: lines.append(text))
    return lines


@pytest.mark.parametrize(("first", "other"), [("rxe", "uml-rxe"), ("uml-rxe", "rxe")])
def test_another_carrier_is_tried(
    said: list[str], monkeypatch: pytest.MonkeyPatch, first: str, other: str
) -> None:
    monkeypatch.setattr(runner, "find_image", lambda _: None)
    computer = Computer(first)
    spec = load_environment(first)
    status = run_where_machines_start(computer.run, spec, Progress(), named=False)
    assert status == ExitStatus.PASSED
    before = Attempt(before=f"{first}: libvirt refused")
    assert computer.attempts == [(first, Attempt(last=False)), (other, before)]
    assert said[0] == f"no machine can be started in {first}: libvirt refused"
    assert said[1].startswith(f"going on in {other}: ")
    assert ("built first; that takes" in said[1]) is (other == "uml-rxe")


def test_the_named_environment_or_none(said: list[str]) -> None:
    computer = Computer("rxe")
    spec = load_environment("rxe")
    status = run_where_machines_start(computer.run, spec, Progress(), named=True)
    assert status == ExitStatus.NOT_PROVIDED
    assert computer.attempts == [("rxe", ONLY)]
    assert said == []


def test_what_works_is_tried_once(said: list[str]) -> None:
    computer = Computer("uml-rxe")
    spec = load_environment("rxe")
    assert run_where_machines_start(computer.run, spec, Progress(), named=False) == 0
    assert [name for name, _ in computer.attempts] == ["rxe"]
    assert said == []


def test_the_other_environment_has_the_same_driver_and_start(said: list[str]) -> None:
    spec = load_environment("rxe")
    spec = dataclasses.replace(spec, machine=dataclasses.replace(spec.machine, cold=True))
    other = runner._other_environment(spec)
    assert other
    assert (other.name, other.driver, other.machine.cold) == ("uml-rxe", spec.driver, True)


def test_a_kernel_that_is_under_test_is_not_replaced(tmp_path: Path) -> None:
    for name in (*FILES, "Makefile"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    driver = DriverSpec(origin=DriverOrigin.TREE, path=tmp_path)
    uml, vm = (
        dataclasses.replace(load_environment(name), driver=driver) for name in ("uml-rxe", "rxe")
    )
    assert runner._other_environment(uml) is None
    assert runner._other_environment(vm)


def test_both_reasons_are_given() -> None:
    attempt = Attempt(before="rxe: libvirt refused")
    error = CarrierFailed("no place for memory", hint="make room", detail="more")
    with pytest.raises(ProvisionError) as raised, attempt.of("uml-rxe", failing(error)):
        pass
    assert raised.value.message == (
        "no carrier works here: rxe: libvirt refused; uml-rxe: no place for memory"
    )
    assert (raised.value.hint, raised.value.detail) == ("make room", "more")
    with pytest.raises(CarrierFailed), ONLY.of("rxe", failing(error)):
        pass


def test_what_fails_later_is_not_the_carriers() -> None:
    with (
        pytest.raises(ProvisionError, match=r"^a scenario's$"),
        Attempt(before="rxe: libvirt refused").of("uml-rxe", _nothing()),
    ):
        raise ProvisionError("a scenario's")


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def test_the_carriers_failures() -> None:
    with pytest.raises(UsageError), carrier_failures():
        raise UsageError("no such image")
    with pytest.raises(CarrierFailed) as raised, carrier_failures():
        raise ProvisionError("it did not boot", hint="look", detail="console")
    error = pickle.loads(pickle.dumps(raised.value))
    assert (type(error), error.message, error.hint, error.detail) == (
        *(CarrierFailed, "it did not boot"),
        *("look", "console"),
    )


@pytest.mark.parametrize("last", [True, False])
def test_a_run_that_cannot_start_leaves_a_verdict_or_nothing(run: Run, last: bool) -> None:
    run.write("def test_it(): pass")
    run.provide = lambda: failing(CarrierFailed("libvirt refused"))
    run.raises = Attempt(last=last).raises
    if last:
        assert run.main() == ExitStatus.NOT_PROVIDED
        assert run.json()["reason"] == "libvirt refused"
        assert run.complete()
    else:
        with pytest.raises(CarrierFailed):
            run.main()
        assert not run.results.exists()
