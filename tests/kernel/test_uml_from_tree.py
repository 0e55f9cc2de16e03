"""When User Mode Linux of a user's tree is built, and when it is there already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import pytest
from tests.helpers.kernel_trees import FILES, MAKEFILE, image_with

from smbdirect_testbed.config.spec import DriverOrigin, DriverSpec
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.kernel import containment, uml_from_tree
from smbdirect_testbed.kernel import tree as kernel_tree
from smbdirect_testbed.kernel.build_root import BuildRoot, _DirectoryBuildRoot
from smbdirect_testbed.kernel.containment import Contained
from smbdirect_testbed.kernel.toolchain import KernelPackages, Toolchain
from smbdirect_testbed.kernel.uml import UmlKernel, kernel_name
from smbdirect_testbed.kernel.uml_config import UmlConfig
from smbdirect_testbed.kernel.uml_from_tree import provide_kernel
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.progress import Progress

ERROR = "kernel/fork.c:3:9: error: 'nothing' undeclared"


class _Root(_DirectoryBuildRoot):
    """A build root whose commands run outside."""

    def _command(self, argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
        there = f"{self.directory}/build/"
        return super()._command([word.replace("/build/", there) for word in argv], env)


@dataclass
class _Compiler:
    """In place of make; what the source held each time it was called."""

    root: Path
    error: Exception | None = None
    dropped: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    objects: list[bool] = field(default_factory=list)
    options: list[str] = field(default_factory=list)

    def __call__(
        self,
        _root: BuildRoot,
        work: PurePosixPath,
        directory: Path,
        _log: Path,
        check: Callable[[list[str]], None],
        options: UmlConfig,
    ) -> str:
        here = self.root / work.relative_to("/")
        self.sources.append((here / "kernel/fork.c").read_text())
        self.objects.append((here / "kernel/fork.o").exists())
        self.options.append(options.text)
        check(self.dropped)
        if self.error:
            raise self.error
        (here / "kernel/fork.o").touch()
        (directory / "linux").touch()
        return "7.4.0-testbed"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kernel_tree, "_JUST_NOW", 0)
    directory = tmp_path / "linux"
    for name in FILES:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(f"{name}\n")
    (directory / "Makefile").write_text(MAKEFILE)
    return directory


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Compiler:
    monkeypatch.setenv("SMBDIRECT_TESTBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        containment, "in_root", lambda root, _writable: Contained(("env", "-C", str(root)))
    )
    (tmp_path / "root").mkdir()
    (tmp_path / "root/packages").write_text("gcc 14\n")
    root = _Root(tmp_path)
    monkeypatch.setattr(
        uml_from_tree, "provide_toolchain", lambda *_: Toolchain(KernelPackages("7.4.1", "1"), root)
    )
    made = _Compiler(tmp_path / "root")
    monkeypatch.setattr(uml_from_tree, "compile_kernel", made)
    return made


@pytest.fixture
def image() -> Image:
    return image_with("7.4.1")


Provided = Callable[[], UmlKernel]


@pytest.fixture
def provided(tree: Path, image: Image) -> Provided:
    spec = DriverSpec(origin=DriverOrigin.TREE, path=tree)
    return lambda: provide_kernel(spec, image, Progress(quiet=True))


def test_built_once_and_after_an_edit(tree: Path, compiler: _Compiler, provided: Provided) -> None:
    first = provided()
    assert first.binary.exists()
    assert first.release == "7.4.0-testbed"
    assert provided() == first
    (tree / "fs/smb/server").mkdir(exist_ok=True)
    (tree / "fs/smb/server/vfs.c").write_text("the driver is built on its own\n")
    assert provided() == first
    (tree / "kernel/fork.c").write_text("edited\n")
    second = provided()
    assert second.digest != first.digest
    assert second.binary == first.binary
    assert compiler.sources == ["kernel/fork.c\n", "edited\n"]
    assert compiler.objects == [False, True]


def test_each_config_has_a_kernel_of_its_own(
    tree: Path, image: Image, compiler: _Compiler, provided: Provided
) -> None:
    first = provided()
    spec = DriverSpec(origin=DriverOrigin.TREE, path=tree)
    debug = provide_kernel(spec, image, Progress(quiet=True), UmlConfig("debug"))
    assert debug.binary != first.binary
    assert debug.digest != first.digest
    assert provided() == first
    assert ["CONFIG_KASAN=y\n" in text for text in compiler.options] == [False, True]


def test_after_a_mistake_the_old_source_is_built_again(
    tree: Path, compiler: _Compiler, provided: Provided
) -> None:
    first = provided()
    (tree / "kernel/fork.c").write_text("mistake\n")
    compiler.error = CommandFailed(["make"], 2, f"a page\n{ERROR}\nanother\n")
    with pytest.raises(ProvisionError, match=r"7\.4\.0-rc1\) does not build") as raised:
        provided()
    assert raised.value.detail == ERROR
    compiler.error = None
    (tree / "kernel/fork.c").write_text("kernel/fork.c\n")
    assert provided() == first
    # Modules are built against the tree, which had the mistake in it.
    assert compiler.sources == ["kernel/fork.c\n", "mistake\n", "kernel/fork.c\n"]


def test_killed_before_the_kernel_was_in_the_cache(
    tree: Path, compiler: _Compiler, provided: Provided
) -> None:
    kernel = provided()
    facts = kernel.binary.with_name("kernel.json")
    before = facts.read_text()
    (tree / "kernel/fork.c").write_text("edited\n")
    provided()
    facts.write_text(before)
    provided()
    assert compiler.sources == ["kernel/fork.c\n", "edited\n", "edited\n"]


@pytest.mark.parametrize("version", ["7.4.1", "7.3.9"])
def test_it_begins_with_what_was_built_of_the_same_version(
    tmp_path: Path, tree: Path, compiler: _Compiler, version: str
) -> None:
    image = image_with(version)
    there = tmp_path / "root/build" / kernel_name(KernelPackages.of(image))
    for name in ("kernel/fork.o", "kernel/removed.c", "linux", "Makefile"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).touch()
    spec = DriverSpec(origin=DriverOrigin.TREE, path=tree)
    kernel = provide_kernel(spec, image, Progress(quiet=True))
    assert compiler.objects == [version.startswith("7.4")]
    work = tmp_path / "root" / kernel.toolchain.headers.relative_to("/")
    assert not (work / "kernel/removed.c").exists()


def test_an_option_more_or_less(
    tree: Path, image: Image, compiler: _Compiler, capfd: pytest.CaptureFixture[str]
) -> None:
    compiler.dropped = ["CONFIG_TMPFS_INODE64=y"]
    provide_kernel(DriverSpec(origin=DriverOrigin.TREE, path=tree), image, Progress())
    assert f"{tree} does without CONFIG_TMPFS_INODE64=y\n" in capfd.readouterr().err


def test_without_rdma_there_is_no_machine(compiler: _Compiler, provided: Provided) -> None:
    compiler.dropped = ["CONFIG_TMPFS_INODE64=y", "CONFIG_RDMA_RXE=y"]
    with pytest.raises(ProvisionError, match=r"cannot have CONFIG_RDMA_RXE=y$") as raised:
        provided()
    assert "TMPFS" not in raised.value.message


def test_a_part_of_a_tree_has_the_distributions_kernel(
    tree: Path, compiler: _Compiler, provided: Provided, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = provided()
    monkeypatch.setattr(
        uml_from_tree, "provide_uml_kernel", lambda *_: replace(theirs, release="7.4")
    )
    assert provided() == theirs
    (tree / "Kconfig").unlink()
    assert provided().release == "7.4"
