"""Build roots: files in, command, files out."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath

import pytest

from smbdirect_testbed.kernel import build_root, containment
from smbdirect_testbed.kernel.build_root import BuildRoot
from smbdirect_testbed.kernel.containment import Contained
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.progress import Progress

FILE = PurePosixPath("/build/x/file")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildRoot:
    """A build root whose commands run outside, so that the test needs no system in it."""
    monkeypatch.setenv("SMBDIRECT_TESTBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        containment, "in_root", lambda root, _writable: Contained(("env", "-C", str(root)))
    )
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "packages").write_text("gcc 4:14.2.0-1\nmake 4.4\n")
    return build_root._DirectoryBuildRoot(tmp_path)


def test_packages(root: BuildRoot) -> None:
    assert root.packages == {"gcc": "4:14.2.0-1", "make": "4.4"}


def test_what_is_put_in_and_taken_out(root: BuildRoot, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("hello")
    out = tmp_path / "somewhere" / "out"
    root.put({FILE: tmp_path / "in"})
    root.run(["cp", "build/x/file", "result"])
    root.take({PurePosixPath("/result"): out})
    assert out.read_text() == "hello"


def test_a_command_sees_only_its_own_environment(
    root: BuildRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", "-O0")
    lines = root.run(["env"], env={"MORE": "1"}).stdout.splitlines()
    assert "MORE=1" in lines
    assert not any(line.startswith("CFLAGS=") for line in lines)


def test_a_failure_names_the_command_and_the_log(root: BuildRoot, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as raised:
        root.run(["sh", "-c", "echo broken; exit 3"], log=tmp_path / "log")
    assert raised.value.argv[0] == "sh"
    assert raised.value.status == 3
    assert "broken" in (tmp_path / "log").read_text()


def test_a_full_disk(root: BuildRoot) -> None:
    with pytest.raises(ProvisionError, match="no space left on the disk"):
        root.run(["sh", "-c", "echo as: No space left on device; exit 1"])


def leave(root: BuildRoot, tmp_path: Path, error: BaseException | None) -> bool:
    """Whether a file in a work directory outlives a use that ends with an error."""
    here = tmp_path / "root" / "build" / "w" / "object"
    try:
        with root.work_directory("w", Progress(quiet=True)) as work:
            assert work == PurePosixPath("/build/w")
            here.touch()
            if error:
                raise error
    except (CommandFailed, ProvisionError, KeyboardInterrupt):
        pass
    with root.work_directory("w", Progress(quiet=True)):
        return here.exists()


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (None, True),
        (ProvisionError("does not compile"), True),
        (CommandFailed(["make"], 2, ""), True),
        (CommandFailed(["make"], None, ""), False),
        (CommandFailed(["make"], -9, ""), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_a_work_directory_keeps_only_what_is_whole(
    root: BuildRoot, tmp_path: Path, error: BaseException | None, kept: bool
) -> None:
    assert leave(root, tmp_path, error) is kept


def test_an_interrupted_use_is_resumed(root: BuildRoot, tmp_path: Path) -> None:
    here = tmp_path / "root" / "build" / "w"
    quiet = Progress(quiet=True)
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("old.c", "new.c"):
        (tree / name).write_text(name)
    files = {"old.c": "-1", "new.c": "-2"}

    def interrupted() -> None:
        with root.work_directory("w", quiet) as work:
            assert root.bring_tree(files, tree, work) == 2
            for name in ("old.c", "old.o", "half.o"):
                (here / name).touch()
            for name in ("old.c", "old.o"):
                os.utime(here / name, (1, 1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with root.work_directory("w", quiet) as work:
        assert sorted(p.name for p in here.iterdir()) == ["old.c", "old.o"]
        assert root.bring_tree(files, tree, work) == 1
        assert (here / "old.c").stat().st_mtime == 1
        assert (here / "new.c").read_text() == "new.c"
    with root.work_directory("w", quiet):
        assert (here / "new.c").exists()


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A directory of this computer's, which no build may reach."""
    directory = tmp_path / "precious"
    directory.mkdir()
    (directory / "key").write_text("PRIVATE KEY")
    return directory


def _unchanged(precious: Path) -> bool:
    return [(f.name, f.read_text()) for f in precious.iterdir()] == [("key", "PRIVATE KEY")]


def test_a_build_leaves_links_where_files_are_put(
    root: BuildRoot, tmp_path: Path, precious: Path
) -> None:
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "key").write_text("1")
    here = tmp_path / "root/build/w"
    with root.work_directory("w", Progress(quiet=True)) as work:
        root.put({work / "src": source})
        for leave in (
            f"rm -r {here}/src/sub; ln -s {precious} {here}/src/sub",
            f"ln -sf {precious}/key {here}/src/sub/key",
            f"rm -r {here}/src; ln -s {precious} {here}/src",
        ):
            root.run(["sh", "-c", leave])
            (source / "sub" / "key").write_text(leave)
            root.put({work / "src": source})
            assert (here / "src/sub/key").read_text() == leave
            assert _unchanged(precious)


def test_a_build_forges_what_is_known_of_files(
    root: BuildRoot, tmp_path: Path, precious: Path
) -> None:
    """What vanished is removed, by a record; it was in reach of the build."""
    (tmp_path / "in").write_text("1")
    here = tmp_path / "root/build/w"
    with root.work_directory("w", Progress(quiet=True)) as work:
        root.put({work / "file": tmp_path / "in"})
        forged = json.dumps([str(precious / "key")])
        for record in (tmp_path / "root").rglob("*"):
            if record.is_file() and record.read_bytes().startswith((b"[", b"{")):
                record.write_text(forged)
        (here / ".testbed-copied.json").write_text(json.dumps({f"{precious}/key": ""}))
        root.put({work / "file": tmp_path / "in"})
        root.bring_tree({}, tmp_path, work)
    assert _unchanged(precious)


def test_a_build_leaves_links_where_products_are_taken(
    root: BuildRoot, tmp_path: Path, precious: Path
) -> None:
    with root.work_directory("w", Progress(quiet=True)) as work:
        here = tmp_path / "root/build/w"
        root.run(["ln", "-s", str(precious / "key"), str(here / "smbdirect.ko")])
        root.run(["ln", "-s", str(precious), str(here / "modules")])
        for name in ("smbdirect.ko", "modules", "modules/key"):
            with pytest.raises(ProvisionError, match="is a link"):
                root.take({work / name: tmp_path / "out" / name})
        root.run(["mkdir", str(here / "all")])
        root.run(["ln", "-s", str(precious / "key"), str(here / "all/link")])
        root.take({work / "all": tmp_path / "out"})
    for file in (tmp_path / "out").rglob("*"):
        assert file.is_symlink() or file.is_dir() or "PRIVATE" not in file.read_text()


def test_an_interrupted_build_leaves_links(root: BuildRoot, tmp_path: Path, precious: Path) -> None:
    def interrupted() -> None:
        with root.work_directory("w", Progress(quiet=True)):
            (tmp_path / "root/build/w/d").symlink_to(precious)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with root.work_directory("w", Progress(quiet=True)):
        assert _unchanged(precious)
