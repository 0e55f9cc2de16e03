"""Image recipes: the files ``vm-images/*.toml``, read and checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from smbdirect_testbed.config.envfile import parse_toml, validate
from smbdirect_testbed.lib import cache, paths
from smbdirect_testbed.lib.errors import UsageError

_STRICT = ConfigDict(extra="forbid")

Package = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
GuestPath = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9_@+][A-Za-z0-9._@+-]*)+$")]
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
ModulePattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9_*][A-Za-z0-9_/.*-]*$")]


@dataclass(frozen=True, config=_STRICT)
class KernelRecipe:
    """The kernel of an image.

    :param package: its Debian package, or one that depends on it
    :param modules: what to keep of the package's modules: paths below ``kernel/`` in the module
        directory, with ``*`` for any part of one name
    """

    package: Package
    modules: tuple[ModulePattern, ...]


@dataclass(frozen=True, config=_STRICT)
class InitramfsRecipe:
    """The programs before the root file system is mounted.

    :param init: the program, a file next to the recipe
    :param modules: kernel modules it loads: the first group for the root file system, the others in
        parallel; dependencies are added to a module's group, and can be in one group only
    """

    init: str
    modules: Annotated[tuple[tuple[ModuleName, ...], ...], Field(min_length=1)]


@dataclass(frozen=True, config=_STRICT)
class Recipe:
    """The contents of an image: a file in ``vm-images/``.

    :param name: its file's, without ``.toml``
    :param suite: the Debian suite
    :param backports: take every package from the suite's backports if it is there
    :param packages: installed packages
    :param unpack: directory by package: the package is only unpacked there, because dpkg would not
        install it together with the others
    :param users: users in addition to those of packages; they have no password
    :param files: file next to the recipe by path in the image; it stays executable
    """

    # What an image is made of does not depend on it, and so its digest must not.
    name: Annotated[str, Field(repr=False)]
    description: str
    suite: Annotated[str, Field(pattern=r"^[a-z]+$")]
    kernel: KernelRecipe
    initramfs: InitramfsRecipe
    packages: tuple[Package, ...]
    backports: bool = False
    unpack: dict[Package, GuestPath] = Field(default_factory=dict)
    users: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")], ...] = ()
    files: dict[GuestPath, str] = Field(default_factory=dict)

    @property
    def suites(self) -> tuple[str, ...]:
        """The suites of the packages."""
        return (self.suite, f"{self.suite}-backports") if self.backports else (self.suite,)


def recipe_names(directory: Path | None = None) -> list[str]:
    """The names of all images that there are recipes for."""
    return sorted(f.stem for f in (directory or paths.images()).glob("*.toml"))


def read_recipe(name: str, directory: Path | None = None) -> Recipe:
    """Read a recipe, and check that the files it names are there.

    :raises UsageError: there is no such recipe, or something in it is wrong
    """
    directory = directory or paths.images()
    file = directory / f"{name}.toml"
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name) or not file.is_file():
        raise UsageError(
            f"there is no image {name!r}", hint=f"images are {', '.join(recipe_names(directory))}"
        )
    table = parse_toml(file.read_text(errors="replace"), file)
    if "name" in table:
        raise UsageError(f"{file}: name: an image is named by its file; remove the key")
    recipe = validate(TypeAdapter(Recipe), {"name": name, **table}, file)
    for source in (recipe.initramfs.init, *recipe.files.values()):
        if not (directory / source).is_file():
            raise UsageError(f"{file}: there is no file {directory / source}")
    return recipe


def recipe_digest(recipe: Recipe, directory: Path | None = None) -> str:
    """A digest of a recipe and of the contents of the files it names."""
    directory = directory or paths.images()
    parts: list[str | bytes] = [repr(recipe)]
    for source in (recipe.initramfs.init, *recipe.files.values()):
        parts += [(directory / source).read_bytes(), str(file_mode(directory / source))]
    return cache.digest(parts)


def file_mode(source: Path) -> int:
    """The mode in the image of a file next to a recipe, independent of the umask here."""
    return 0o755 if source.stat().st_mode & 0o100 else 0o644
