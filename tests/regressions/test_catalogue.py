"""The catalogue of bugs: every file says what it must, and fits the source."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest
from tests.regressions.bug import Bug, DoesNotFit, Edit, Kind, catalogue, read_bug

from smbdirect_testbed.config.envfile import list_environments
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import UsageError

BUGS = list(catalogue())
PUBLISHED = 30
"""At least."""


def test_there_are_enough_of_all_kinds() -> None:
    assert len(BUGS) >= PUBLISHED
    assert {bug.kind for bug in BUGS} == set(Kind)
    assert 2 <= sum(bug.quick for bug in BUGS) <= 3


def test_names_and_sentences_are_there_once() -> None:
    for values in ([b.what for b in BUGS], [b.edits for b in BUGS]):
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_environment_and_scenarios_exist(bug: Bug) -> None:
    assert bug.environment in list_environments()
    known = [f"{file}::{test}" for file, test in _scenarios()]
    for word in re.findall(r"\w+", bug.scenarios):
        if word not in ("and", "or", "not", "smbdirect"):
            assert any(word in name for name in known), word


def _scenarios() -> list[tuple[str, str]]:
    return [
        (file.name, node.name)
        for file in (paths.PROJECT / "scenarios").glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]


def test_every_bug_fits_the_source(tmp_path: Path) -> None:
    """As far as a source is there; without one, a run says so of each bug that it tries."""
    for source in paths.cache().glob("build-roots/driver-*/root/usr/src/testbed"):
        for bug in BUGS:
            tree = tmp_path / bug.name
            for file in {edit.file for edit in bug.edits}:
                (tree / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / file, tree / file)
            bug.put_back(tree)
            for file in {edit.file for edit in bug.edits}:
                assert (tree / file).read_text() != (source / file).read_text()
        shutil.rmtree(tmp_path)


SOURCE = """\
static int first(int a);

static int first(int a)
{
	if (a &&
		b)
		c();
}

int second(struct thing *a,
		int b)
{
	c();
}
"""


def test_white_space_and_functions() -> None:
    edited = Edit("f.c", "if (a && b)", "if (b)", "first").apply(SOURCE)
    assert edited == SOURCE.replace("if (a &&\n\t\tb)", "if (b)")
    edited = Edit("f.c", "c();", "d();", "second").apply(SOURCE)
    assert edited == "d();".join(SOURCE.rsplit("c();", 1))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit("f.c", "c();", ""), r"f.c: 'c\(\);' is there 2 times"),
        (Edit("f.c", "x();", ""), r"f.c: 'x\(\);' is not there"),
        (Edit("f.c", "if (a", "", "second"), r"f.c: second\(\): 'if \(a' is not there"),
        (Edit("f.c", "c();", "", "third"), "f.c: 0 functions third are there"),
    ],
)
def test_a_place_that_does_not_fit(edit: Edit, message: str) -> None:
    with pytest.raises(DoesNotFit, match=message) as error:
        edit.apply(SOURCE)
    assert "\n" not in error.value.message


GOOD = """\
kind = "hang"
what = "it hangs"
happens = "nothing"
scenarios = "test_socket"
edits = [{ file = "f.c", find = "c();", put = "", function = "second" }]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hang", "hunger", "bad.toml: kind: "),
        ('what = "it hangs"\n', "", "bad.toml: what: Field required"),
        ('what = "it', 'whither = "it', "bad.toml: unknown keys: whither"),
        ("kind =", "upstream = '1234'\nkind =", "'1234' is neither 12 digits"),
        ("edits = [{", "edits = [] #", "edits: at least one"),
        ("kind =", "kind", "bad.toml: "),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old)
    (tmp_path / "bad.toml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(UsageError, match=re.escape(message)):
        read_bug(tmp_path / "bad.toml")


def test_thorough_scenarios_do_not_count_unless_named(tmp_path: Path) -> None:
    (tmp_path / "bug.toml").write_text(GOOD)
    assert read_bug(tmp_path / "bug.toml").expression == "(test_socket) and not thorough"
    (tmp_path / "bug.toml").write_text(f'which = "thorough"\n{GOOD}')
    assert read_bug(tmp_path / "bug.toml").expression == "test_socket"


def test_a_source_without_the_file(tmp_path: Path) -> None:
    (tmp_path / "bug.toml").write_text(GOOD)
    with pytest.raises(DoesNotFit, match=r"bug: the source has no f.c"):
        read_bug(tmp_path / "bug.toml").put_back(tmp_path / "tree")
