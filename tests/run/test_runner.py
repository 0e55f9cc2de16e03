"""What a run is when its user leaves something out, and what concerns it of a user's tree."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.helpers.kernel_trees import FILES, MAKEFILE, image_with

from smbdirect_testbed.carriers.vm.kvm_probe import KvmVerdict
from smbdirect_testbed.config.envfile import load_environment
from smbdirect_testbed.environment.blueprint import Blueprint
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.run import runner
from smbdirect_testbed.run.runner import (
    default_environment,
    prepare_quickest,
    quickest_environment,
    watched_places,
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A full tree of Linux 7.4."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "Makefile").write_text(MAKEFILE)
    return tmp_path


@pytest.mark.parametrize(
    ("kvm", "image", "expected"),
    [
        (True, "7.4.9", "rxe"),
        (True, "7.3.4", "uml-rxe"),
        (True, None, "rxe"),
        (False, "7.4.9", "uml-rxe"),
        (False, None, "rxe"),
    ],
)
def test_a_tree_of_another_version_gets_its_own_kernel(
    tree: Path, monkeypatch: pytest.MonkeyPatch, kvm: bool, image: str | None, expected: str
) -> None:
    computer(monkeypatch, kvm=kvm, image=image, uml_is_built=True)
    assert default_environment(tree) == expected
    (tree / "arch/um/Makefile").unlink()
    assert (
        default_environment(tree)
        == default_environment()
        == ("rxe" if kvm or not image else "uml-rxe")
    )


@pytest.mark.parametrize("kvm", [False, True])
def test_the_soonest_verdict(monkeypatch: pytest.MonkeyPatch, kvm: bool) -> None:
    quickest = "rxe" if kvm else "uml-rxe"
    for image, uml_is_built, expected in (
        (None, False, "rxe"),
        ("7.3.4", False, "rxe"),
        ("7.3.4", True, quickest),
    ):
        computer(monkeypatch, kvm=kvm, image=image, uml_is_built=uml_is_built)
        assert (default_environment(), quickest_environment()) == (expected, quickest)


@pytest.mark.parametrize(
    ("outcome", "last"),
    [
        (None, ["run: FAILED; "]),
        (
            ProvisionError("no space"),
            ["later runs are as slow as this one: no space", "run: FAILED; "],
        ),
        (KeyboardInterrupt(), ["later runs are as slow as this one: interrupted", "run: FAILED; "]),
    ],
)
def test_what_follows_the_verdict_does_not_change_it(
    monkeypatch: pytest.MonkeyPatch,
    outcome: BaseException | None,
    last: list[str],
) -> None:
    computer(monkeypatch, kvm=False, image="7.3.4", uml_is_built=False)
    provided: list[str] = []
    said: list[str] = []

    def provide_parts(blueprint: Blueprint, progress: Progress) -> None:
        provided.append(blueprint.spec.name)
        if outcome:
            raise outcome

    progress = Progress()
    monkeypatch.setattr(progress, "say", said.append)
    monkeypatch.setattr(runner, "provide_parts", provide_parts)
    prepare_quickest(progress, passed=False)
    assert provided == ["uml-rxe"]
    assert [line[: len(begin)] for line, begin in zip(said[1:], last, strict=True)] == last


@pytest.mark.parametrize(("kvm", "uml_is_built"), [(True, False), (False, True)])
def test_nothing_follows_the_verdict(
    monkeypatch: pytest.MonkeyPatch, kvm: bool, uml_is_built: bool
) -> None:
    computer(monkeypatch, kvm=kvm, image="7.3.4", uml_is_built=uml_is_built)
    monkeypatch.setattr(runner, "provide_parts", None)
    prepare_quickest(Progress(), passed=True)


def computer(
    monkeypatch: pytest.MonkeyPatch, *, kvm: bool, image: str | None, uml_is_built: bool
) -> None:
    """Pretend that this computer has these things; the image by its kernel's version."""
    monkeypatch.setattr(runner, "find_image", lambda _: image_with(image) if image else None)
    monkeypatch.setattr(
        "smbdirect_testbed.carriers.vm.kvm_probe.probe", lambda: KvmVerdict(kvm, "said so")
    )
    monkeypatch.setattr("smbdirect_testbed.kernel.uml.is_cached", lambda _: uml_is_built)


def test_what_is_watched(tree: Path) -> None:
    headers = tree / "include"
    assert headers in watched_places(load_environment("uml-rxe"), tree)
    of_vm = watched_places(load_environment("rxe"), tree)
    assert tree / "fs/smb" in of_vm
    assert headers not in of_vm
    (tree / "Kconfig").unlink()
    assert watched_places(load_environment("uml-rxe"), tree) == of_vm
