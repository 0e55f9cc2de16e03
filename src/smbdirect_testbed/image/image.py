"""Images: the kernel and the userland that a machine boots."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smbdirect_testbed.image.mmdebstrap import Bootstrap, bootstrap_nothing, hook
from smbdirect_testbed.image.recipe import Recipe, file_mode, recipe_digest
from smbdirect_testbed.lib import cache, paths
from smbdirect_testbed.lib.progress import Progress

_VERSION = "1"
"""Of this module: raise it when the same recipe gives a different image."""

_IMAGE_GIB = 1.0
_NEEDED = ("busybox-static", "erofs-utils", "kmod", "passwd")
"""Packages that finishing an image needs."""
INIT = "/usr/lib/smbdirect-testbed/init"
"""In a root file system: the program that the kernel or the initramfs starts."""


@dataclass(frozen=True)
class Image:
    """A kernel, an initramfs and a root file system that belong together.

    ::

        image = provide_image(read_recipe("trixie"), progress)
        assert "samba" in image.packages

    :param recipe: what it was made by
    :param digest: of the recipe and of the packages' versions
    :param root: an erofs file system
    :param kernel_release: as printed by ``uname -r``
    :param packages: version by name, of all packages
    """

    recipe: Recipe
    digest: str
    directory: Path
    root: Path
    kernel: Path
    initramfs: Path
    kernel_release: str
    packages: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name of its recipe."""
        return self.recipe.name

    @property
    def kernel_version(self) -> str:
        """The version of the kernel's Debian package."""
        return self.packages[f"linux-image-{self.kernel_release}"]


def provide_image(recipe: Recipe, progress: Progress, *, force: bool = False) -> Image:
    """The image of a recipe, which is made first if it is not in the cache.

    :param force: make it again, with today's packages
    :raises ProvisionError: it could not be made
    """
    name = recipe.name
    finish = paths.images() / "guest" / "finish"
    key = _key(recipe, finish)

    def make(directory: Path) -> None:
        with progress.phase("image", f"building image {name}"):
            cache.require_space(directory, _IMAGE_GIB, f"image {name}")
            _make(key, recipe, finish, directory, progress)

    entry = cache.provide("images", f"{name}-{key[:16]}", make, progress, force=force)
    return _read(recipe, entry)


def find_image(recipe: Recipe) -> Image | None:
    """The image of a recipe, if it is in the cache."""
    key = _key(recipe, paths.images() / "guest" / "finish")
    entry = cache.find("images", f"{recipe.name}-{key[:16]}")
    return _read(recipe, entry) if entry else None


def _key(recipe: Recipe, finish: Path) -> str:
    return cache.digest([_VERSION, recipe_digest(recipe), finish.read_bytes()])


def _make(key: str, recipe: Recipe, finish: Path, directory: Path, progress: Progress) -> None:
    files = directory / "files.tar"
    _pack(recipe, finish, files)
    what = Bootstrap(
        recipe.suites,
        (recipe.kernel.package, *sorted({*recipe.packages, *_NEEDED})),
        (
            hook("tar-in", files, "/"),
            'chroot "$1" /.testbed/in/finish 1>&2',
            hook("copy-out", "/.testbed/out", directory),
        ),
    )
    bootstrap_nothing(what, cache.log_file(f"image-{recipe.name}"), progress)
    files.unlink()
    out = directory / "out"
    for file in out.iterdir():
        file.chmod(0o644)
        file.rename(directory / file.name)
    out.rmdir()
    packages = dict(
        line.split(" ", 1) for line in (directory / "packages").read_text().splitlines()
    )
    facts = {
        "name": recipe.name,
        "digest": cache.digest([key, (directory / "packages").read_bytes()]),
        "kernel_release": (directory / "kernel-release").read_text().strip(),
        "packages": packages,
    }
    (directory / "packages").unlink()
    (directory / "kernel-release").unlink()
    (directory / "image.json").write_text(json.dumps(facts, indent=1))


def _read(recipe: Recipe, directory: Path) -> Image:
    facts = json.loads((directory / "image.json").read_text())
    return Image(
        recipe=recipe,
        digest=facts["digest"],
        directory=directory,
        root=directory / "root.erofs",
        kernel=directory / "vmlinuz",
        initramfs=directory / "initramfs",
        kernel_release=facts["kernel_release"],
        packages=facts["packages"],
    )


def _pack(recipe: Recipe, finish: Path, target: Path) -> None:
    """All our files for the new system, owned by root whichever user packs them."""
    here = paths.images()
    lists = {
        "unpack": [f"{package} {path}" for package, path in recipe.unpack.items()],
        "users": recipe.users,
        "modules": recipe.kernel.modules,
        "boot-modules": [" ".join(group) for group in recipe.initramfs.modules],
    }
    with tarfile.open(target, "w") as tar:
        for path, source in recipe.files.items():
            _add(tar, path, (here / source).read_bytes(), file_mode(here / source))
        for name, lines in lists.items():
            _add(tar, f"/.testbed/in/{name}", "".join(f"{x}\n" for x in lines).encode(), 0o644)
        init = (here / recipe.initramfs.init).read_bytes()
        _add(tar, "/.testbed/in/initramfs-init", init, 0o755)
        _add(tar, "/.testbed/in/finish", finish.read_bytes(), 0o755)


def _add(tar: tarfile.TarFile, path: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.size = len(content)
    entry.mode = mode
    tar.addfile(entry, io.BytesIO(content))
