"""The origins of the driver's C code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from smbdirect_testbed.config.spec import DriverOrigin, DriverSpec
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.kernel.toolchain import SOURCE_PARTS, KernelPackages, provide_toolchain
from smbdirect_testbed.kernel.tree import BUILT, require_inside
from smbdirect_testbed.kernel.tree_commit import described
from smbdirect_testbed.lib import cache, process
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError, UsageError
from smbdirect_testbed.lib.progress import Progress

_ESSENTIAL = (
    "fs/smb/smbdirect",
    "fs/smb/client",
    "fs/smb/common",
    "fs/smb/server",
    "fs/smb/Makefile",
)
_GIT_SECONDS = 900


@dataclass(frozen=True)
class SourceFiles:
    """Source files as they were at one moment; later edits do not matter.

    :param files: content and mode by name
    """

    files: Mapping[str, tuple[bytes, int]]

    @classmethod
    def read(cls, directory: Path, parts: Iterable[str]) -> Self:
        """Read files and directories below a directory, but no build products.

        :raises UsageError: a file cannot be read
        """
        try:
            return cls(dict(_source_files(directory, parts)))
        except OSError as e:
            raise UsageError(f"driver: cannot read {e.filename}: {e.strerror}") from e

    def digest(self) -> str:
        """Equal for two only if all names, contents and modes are equal."""
        return cache.digest(
            part
            for name, (content, mode) in self.files.items()
            for part in (name, content, str(mode))
        )

    def write(self, directory: Path) -> None:
        """Write the files to another directory."""
        for name, (content, mode) in self.files.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(mode)


@dataclass(frozen=True)
class DriverSource:
    """The driver's part of a kernel tree.

    :param identity: equal for two sources only if all their files are equal
    :param description: in words
    :param version: its version at its origin
    :param write: writes the files to a directory, laid out as in a kernel tree
    :param tree: the user's tree, if it is the origin
    """

    identity: str
    description: str
    version: str
    write: Callable[[Path], None]
    tree: Path | None = None


def resolve(spec: DriverSpec, image: Image, progress: Progress) -> DriverSource:
    """Find the source for a spec. A tree is read; other sources are not fetched yet.

    :raises UsageError: the spec's path holds no driver
    """
    match spec.origin:
        case DriverOrigin.DISTRIBUTION:
            return _distribution(image, progress)
        case DriverOrigin.TREE:
            assert spec.path is not None
            return tree_source(spec.path)
        case DriverOrigin.GIT:
            assert spec.url is not None
            assert spec.commit is not None
            return git_source(spec.url, spec.commit, progress)
        case DriverOrigin.INSTALLED:
            raise UsageError("driver: installed modules have no source")


def _distribution(image: Image, progress: Progress) -> DriverSource:
    kernel = KernelPackages.of(image)
    package, version = kernel.source, kernel.version

    def write(directory: Path) -> None:
        toolchain = provide_toolchain(image, progress)
        parts = {toolchain.source / part: directory / part for part in SOURCE_PARTS}
        toolchain.build_root.take(parts)

    return DriverSource(
        f"distribution {package} {version}", f"Debian's {package} {version}", version, write
    )


def check(spec: DriverSpec) -> None:
    """Check quickly whether the spec's tree can be a kernel tree.

    :raises UsageError: it holds no driver
    """
    if spec.path is not None:
        _check_tree(spec.path)


def tree_source(tree: Path) -> DriverSource:
    """A user's kernel tree, or a part of one, as it is now. It is only read.

    :raises UsageError: it holds no driver
    """
    _check_tree(tree)
    files = SourceFiles.read(tree, SOURCE_PARTS)
    digest = files.digest()
    version = described(tree, SOURCE_PARTS) or f"content {digest[:12]}"
    return DriverSource(f"files {digest}", f"{tree} ({version})", version, files.write, tree)


def _check_tree(tree: Path) -> None:
    if not tree.is_dir():
        raise UsageError(f"driver: there is no directory {tree}")
    for part in _ESSENTIAL:
        if not (tree / part).exists():
            raise UsageError(
                f"driver: {tree} holds no {part}",
                hint="give a kernel tree (7.2 or later), or a part of one with all of fs/smb in it",
            )


def git_source(url: str, commit: str, progress: Progress) -> DriverSource:
    """A commit of a kernel repository; only the files that the driver needs are fetched."""

    def fetch(directory: Path) -> None:
        with progress.phase("driver_source", f"fetching {commit[:12]} of {url}"):
            _fetch(url, commit, directory)

    def write(directory: Path) -> None:
        tree_source(cache.provide("sources", f"git-{commit}", fetch, progress)).write(directory)

    return DriverSource(f"git {commit}", f"{url} at {commit[:12]}", commit, write)


def _source_files(directory: Path, parts: Iterable[str]) -> Iterator[tuple[str, tuple[bytes, int]]]:
    inside: set[Path] = set()
    for part in parts:
        for file in (directory / part, *sorted((directory / part).rglob("*"))):
            if file.is_file() and not BUILT.search(file.name):
                # What is no link is where its directory is.
                followed = file if file.is_symlink() else file.parent
                if followed not in inside:
                    require_inside(directory, followed)
                    inside.add(followed)
                mode = 0o755 if file.stat().st_mode & 0o100 else 0o644
                yield file.relative_to(directory).as_posix(), (file.read_bytes(), mode)


def _fetch(url: str, commit: str, directory: Path) -> None:
    # Next to the entry, so that the repository's own data do not become part of it.
    with TemporaryDirectory(dir=directory.parent, prefix=".git-") as clone:

        def git(*words: str) -> str:
            argv = ["git", "-C", clone, *words]
            env = {"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1"}
            return process.run(argv, timeout=_GIT_SECONDS, env=env).stdout.strip()

        try:
            git("init", "--quiet")
            git("remote", "add", "--", "origin", url)
            git("fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", commit)
            git("sparse-checkout", "set", *SOURCE_PARTS)
            git("checkout", "--quiet", commit)
        except CommandFailed as e:
            raise ProvisionError(
                f"driver: cannot fetch commit {commit[:12]} of {url}",
                hint="check the URL, the commit and the network",
                detail="\n".join(e.output.strip().splitlines()[-5:]),
            ) from e
        tree_source(Path(clone)).write(directory)
