"""Image recipes: what is accepted, and what is said about the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from smbdirect_testbed.image.recipe import read_recipe, recipe_digest, recipe_names
from smbdirect_testbed.lib.errors import UsageError

GOOD = """\
description = "for a test"
suite = "trixie"
backports = true
packages = ["samba"]
[unpack]
ksmbd-tools = "/opt/ksmbd"
[kernel]
package = "linux-image-amd64"
modules = ["fs", "drivers/net/*.ko"]
[initramfs]
init = "guest/boot"
modules = [["erofs"]]
[files]
"/usr/lib/x" = "guest/x"
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "guest").mkdir()
    (tmp_path / "guest" / "boot").write_text("boot")
    (tmp_path / "guest" / "x").write_text("x")
    (tmp_path / "test.toml").write_text(GOOD)
    return tmp_path


def test_every_recipe_of_the_project_is_good() -> None:
    names = recipe_names()
    assert "trixie" in names
    for name in names:
        read_recipe(name)


def test_good(directory: Path) -> None:
    recipe = read_recipe("test", directory)
    assert recipe.suites == ("trixie", "trixie-backports")
    assert recipe.unpack == {"ksmbd-tools": "/opt/ksmbd"}


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('description = "for a test"', 'description = "x"\nsuit = "trixie"', "test.toml: suit"),
        ('package = "linux-image-amd64"', "", "test.toml: kernel.package: is missing"),
        ("[kernel]", "[kernel]\nconfig = 1", "kernel.config: unknown key"),
        ('["samba"]', '"samba"', "packages: "),
        ('["samba"]', '["Samba!"]', r"packages\[1\]: "),
        ("backports = true", "backports = 3", "backports: "),
        ('"/opt/ksmbd"', '"opt/../ksmbd"', r"unpack\.ksmbd-tools: "),
        ('"guest/x"', '"guest/y"', "there is no file .*guest/y"),
        ("[kernel]", "[kernel", "line 7"),
    ],
)
def test_bad(directory: Path, old: str, new: str, complaint: str) -> None:
    assert old in GOOD
    (directory / "test.toml").write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError, match=complaint) as raised:
        read_recipe("test", directory)
    assert "\n" not in raised.value.message


def test_unknown_image_names_those_there_are(directory: Path) -> None:
    for name in ("tset", "../test"):
        with pytest.raises(UsageError, match="there is no image") as raised:
            read_recipe(name, directory)
        assert raised.value.hint == "images are test"


def test_the_digest_covers_files_and_their_modes(directory: Path) -> None:
    recipe = read_recipe("test", directory)
    digests = {recipe_digest(recipe, directory)}
    (directory / "guest" / "x").write_text("other")
    digests.add(recipe_digest(recipe, directory))
    (directory / "guest" / "x").chmod(0o755)
    digests.add(recipe_digest(recipe, directory))
    (directory / "guest" / "boot").write_text("other")
    digests.add(recipe_digest(recipe, directory))
    assert len(digests) == 4


def test_the_digest_does_not_cover_the_umask(directory: Path) -> None:
    recipe = read_recipe("test", directory)
    before = recipe_digest(recipe, directory)
    (directory / "guest" / "x").chmod(0o600)
    assert recipe_digest(recipe, directory) == before
