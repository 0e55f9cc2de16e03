"""Which files of a user's kernel tree count, and how little is read to know that they changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.helpers.kernel_trees import FILES, MAKEFILE

from smbdirect_testbed.kernel import tree as kernel_tree
from smbdirect_testbed.kernel.tree import (
    is_built,
    is_full,
    numbers,
    read_tree,
    source_names,
    tree_version,
)
from smbdirect_testbed.lib.errors import UsageError

NO_FILES = (
    *("fs/smb/smbdirect/socket.c", "fs/smb/Makefile", "drivers/infiniband/sw/siw/siw_main.c"),
    *("arch/arm64/Kconfig", "drivers/gpu/drm/drm_file.c", ".config", ".git/config"),
    *("include/generated/autoconf.h", "include/config/auto.conf", "kernel/fork.o"),
    *("arch/x86/include/generated/asm/x.h", "tools/perf/perf.c", "kernel/.fork.o.cmd"),
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "linux"
    for name in (*FILES, *NO_FILES):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(f"{name}\n")
    (directory / "Makefile").write_text(MAKEFILE)
    return directory


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "record.json"


def test_version(tree: Path) -> None:
    assert tree_version(tree) == "7.4.0-rc1"
    assert numbers("7.4.0-rc1") == numbers("7.4.12+deb13-amd64") != numbers("7.3.4")
    assert tree_version(tree / "fs") is None
    (tree / "Makefile").write_text("all:\n")
    assert tree_version(tree) is None


@pytest.mark.parametrize("missing", ["Makefile", "arch/um/Makefile"])
def test_a_part_is_not_full(tree: Path, missing: str) -> None:
    assert is_full(tree)
    (tree / missing).unlink()
    assert not is_full(tree)


def test_what_a_kernel_is_built_from(tree: Path) -> None:
    assert source_names(tree) == {*FILES, "Makefile"}


def test_what_is_built() -> None:
    assert is_built(Path("/x/fs/cifs.mod.c"))
    assert is_built(Path("/x/include/generated/uapi/version.h"))
    assert not is_built(Path("/x/include/linux/generated.h"))


def test_an_edit_is_seen_and_nothing_else_is_read(
    tree: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_tree, "_JUST_NOW", 0)
    before = read_tree(tree, record)
    read: list[str] = []
    digest = kernel_tree._digest

    def noted(file: Path, stat: list[int]) -> str:
        read.append(file.name)
        return digest(file, stat)

    monkeypatch.setattr(kernel_tree, "_digest", noted)
    assert read_tree(tree, record) == before
    assert read == []
    (tree / "kernel/fork.c").write_text("edited\n")
    (tree / "arch/um/Makefile").touch()
    (tree / "fs/smb/smbdirect/socket.c").write_text("edited\n")
    after = read_tree(tree, record)
    assert sorted(read) == ["Makefile", "fork.c"]
    assert after.identity != before.identity
    assert {n for n in after.files if after.files[n] != before.files[n]} == {"kernel/fork.c"}


def test_an_edit_that_leaves_size_and_times(
    tree: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are as coarse as the kernel's tick: a file just written may be written again in it."""
    now = time.time_ns()
    stat = [4, now, now, 0]
    monkeypatch.setattr(kernel_tree, "_source_files", lambda _: iter([("kernel/fork.c", stat)]))
    identities = set()
    for content in ("one\n", "two\n"):
        (tree / "kernel/fork.c").write_text(content)
        identities.add(read_tree(tree, record).identity)
    assert len(identities) == 2


def test_new_removed_and_mode(tree: Path, record: Path) -> None:
    identities = {read_tree(tree, record).identity}
    (tree / "kernel/new.c").touch()
    identities.add(read_tree(tree, record).identity)
    (tree / "kernel/new.c").chmod(0o755)
    identities.add(read_tree(tree, record).identity)
    (tree / "kernel/fork.c").unlink()
    identities.add(read_tree(tree, record).identity)
    assert len(identities) == 4


def test_a_broken_record_is_no_harm(tree: Path, record: Path) -> None:
    before = read_tree(tree, record)
    record.write_text(record.read_text()[:-20])
    assert read_tree(tree, record) == before


def test_a_file_that_cannot_be_read(tree: Path, record: Path) -> None:
    if os.geteuid() == 0:
        (tree / "kernel/loop.c").symlink_to("fork.c")
        (tree / "kernel/fork.c").unlink()
        assert "kernel/loop.c" not in read_tree(tree, record).files
        return
    (tree / "kernel/fork.c").chmod(0)
    with pytest.raises(UsageError, match="cannot read"):
        read_tree(tree, record)


def test_a_link_out_of_the_tree_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("PRIVATE KEY")
    (tree / "kernel/inside.c").symlink_to("fork.c")
    read_tree(tree, tmp_path / "record")
    (tree / "kernel/stolen.c").symlink_to(tmp_path / "key")
    with pytest.raises(UsageError, match=r"stolen\.c leads out of the tree"):
        read_tree(tree, tmp_path / "record")
