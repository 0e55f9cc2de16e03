"""Where the driver's source comes from."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from smbdirect_testbed.kernel.driver_source import SourceFiles, git_source, tree_source
from smbdirect_testbed.lib.errors import ProvisionError, UsageError
from smbdirect_testbed.lib.progress import Progress

DRIVER = [
    "fs/smb/Makefile",
    "fs/smb/client/x.c",
    "fs/smb/common/x.c",
    "fs/smb/gen_mapping",
    "fs/smb/server/x.c",
    "fs/smb/smbdirect/main.c",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "linux"
    (directory / "fs/smb/smbdirect").mkdir(parents=True)
    for part in ("client", "common", "server"):
        (directory / "fs/smb" / part).mkdir()
        (directory / "fs/smb" / part / "x.c").touch()
    (directory / "fs/smb/Makefile").write_text("obj-m := smbdirect/\n")
    (directory / "fs/smb/smbdirect/main.c").write_text("int main;\n")
    (directory / "fs/smb/gen_mapping").write_text("#!/bin/sh\n")
    (directory / "fs/smb/gen_mapping").chmod(0o700)
    (directory / "drivers/other").mkdir(parents=True)
    (directory / "drivers/other/x.c").write_text("x")
    return directory


def names(directory: Path) -> list[str]:
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())


def git(directory: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    argv = ["git", "-C", str(directory), *identity, *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tree: Path) -> Path:
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "first")
    git(tree, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(tree, "config", "uploadpack.allowFilter", "true")
    return tree


def test_only_the_driver_is_taken_from_a_tree(tree: Path, tmp_path: Path) -> None:
    tree_source(tree).write(tmp_path / "out")
    assert names(tmp_path / "out") == DRIVER
    assert (tmp_path / "out/fs/smb/gen_mapping").stat().st_mode & 0o777 == 0o755


def test_what_was_built_in_a_tree_does_not_count(tree: Path, tmp_path: Path) -> None:
    before = tree_source(tree)
    for name in ("main.o", ".main.o.cmd", "smbdirect.ko", "smbdirect.mod.c", "modules.order", "x~"):
        (tree / "fs/smb/smbdirect" / name).write_text("built")
    assert tree_source(tree).identity == before.identity


def test_the_identity_is_the_content(tree: Path) -> None:
    before = tree_source(tree).identity
    (tree / "fs/smb/smbdirect/main.c").touch()
    assert tree_source(tree).identity == before
    (tree / "fs/smb/smbdirect/main.c").write_text("int other;\n")
    assert tree_source(tree).identity != before


def test_an_edit_after_reading_has_no_effect(tree: Path, tmp_path: Path) -> None:
    source = tree_source(tree)
    (tree / "fs/smb/smbdirect/main.c").write_text("int other;\n")
    source.write(tmp_path / "out")
    assert (tmp_path / "out/fs/smb/smbdirect/main.c").read_text() == "int main;\n"


@pytest.mark.parametrize("made", [None, "fs/ext4", "fs/smb/client"])
def test_a_path_without_a_driver(tmp_path: Path, made: str | None) -> None:
    if made:
        (tmp_path / "tree" / made).mkdir(parents=True)
    with pytest.raises(UsageError, match="tree") as raised:
        tree_source(tmp_path / "tree")
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("part", ["client", "common", "server", "smbdirect", "Makefile"])
def test_a_part_of_the_driver_is_not_enough(tree: Path, part: str) -> None:
    (tree / "fs/smb" / part).rename(tree / "elsewhere")
    with pytest.raises(UsageError, match=f"holds no fs/smb/{part}$"):
        tree_source(tree)


def test_a_trees_version_is_its_commit(repository: Path) -> None:
    commit = git(repository, "rev-parse", "--short=12", "HEAD")
    assert tree_source(repository).version == commit
    (repository / "fs/smb/smbdirect/main.c").write_text("int other;\n")
    assert tree_source(repository).version == f"{commit}-dirty"


def test_a_tree_inside_another_repository_has_no_commit(repository: Path) -> None:
    inner = repository / "inner"
    shutil.copytree(repository / "fs", inner / "fs")
    assert tree_source(inner).version.startswith("content ")


def test_what_a_tree_has_git_run_is_not_run(repository: Path, tmp_path: Path) -> None:
    """Whoever made the tree would run programs as who tests it."""
    ran = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran} {repository}/ran; cat\n")
    program.chmod(0o755)
    (repository / ".gitattributes").write_text("*.c filter=evil\n")
    git(repository, "add", ".gitattributes")
    git(repository, "commit", "--quiet", "-m", "attributes")
    for setting in ("core.fsmonitor", "filter.evil.clean", "filter.evil.process", "core.pager"):
        git(repository, "config", setting, str(program))
    hook = repository / ".git/hooks/post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.symlink_to(program)
    # Of another size or time, so that git compares, which takes the filter.
    (repository / "fs/smb/smbdirect/main.c").write_text("int other;\n")
    assert tree_source(repository).version.startswith(git(repository, "describe", "--always")[:7])
    assert not ran.exists()
    assert not (repository / "ran").exists()


def test_the_commit_of_a_work_tree(repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", "--quiet", str(tmp_path / "other"))
    commit = git(repository, "rev-parse", "--short=12", "HEAD")
    assert tree_source(tmp_path / "other").version == commit


def test_a_link_to_a_file_of_its_user_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("PRIVATE KEY")
    (tree / "fs/smb/client/stolen.h").symlink_to(tmp_path / "key")
    with pytest.raises(UsageError, match="leads out of the tree"):
        tree_source(tree)


def test_a_part_that_is_a_link_out_of_the_tree_is_refused(tree: Path, tmp_path: Path) -> None:
    (tree / "fs/smb").rename(tmp_path / "elsewhere")
    (tree / "fs/smb").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="leads out of the tree"):
        tree_source(tree)


def test_git(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMBDIRECT_TESTBED_CACHE", str(tmp_path / "cache"))
    commit = git(repository, "rev-parse", "HEAD")
    (repository / "fs/smb/smbdirect/main.c").write_text("int other;\n")
    git(repository, "commit", "--quiet", "-am", "second")
    source = git_source(repository.as_uri(), commit, Progress(quiet=True))
    source.write(tmp_path / "out")
    assert names(tmp_path / "out") == DRIVER
    assert (tmp_path / "out/fs/smb/smbdirect/main.c").read_text() == "int main;\n"


def test_git_without_the_commit(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMBDIRECT_TESTBED_CACHE", str(tmp_path / "cache"))
    source = git_source(repository.as_uri(), "0" * 40, Progress(quiet=True))
    with pytest.raises(ProvisionError, match="cannot fetch commit 000000000000 of"):
        source.write(tmp_path / "out")
    assert list((tmp_path / "cache" / "sources").iterdir()) == []


def test_digest_of_files_covers_names_and_modes(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").touch()
    digests = {SourceFiles.read(tmp_path, ["d"]).digest()}
    (tmp_path / "d/a").chmod(0o755)
    digests.add(SourceFiles.read(tmp_path, ["d"]).digest())
    (tmp_path / "d/a").rename(tmp_path / "d/b")
    digests.add(SourceFiles.read(tmp_path, ["d"]).digest())
    assert len(digests) == 3
