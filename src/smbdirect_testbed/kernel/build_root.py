"""Build roots: Debian systems with a compiler, separate from this computer's system."""

from __future__ import annotations

import functools
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath

from smbdirect_testbed.image.mmdebstrap import Bootstrap, bootstrap_directory
from smbdirect_testbed.kernel.tree import source_names
from smbdirect_testbed.kernel.tree_sync import copy_out, forget_last, sync, sync_files
from smbdirect_testbed.lib import cache, process
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError, TestbedError
from smbdirect_testbed.lib.process import CommandResult
from smbdirect_testbed.lib.progress import Progress

_VERSION = "1"
_GIB = 1.5
_WORK = PurePosixPath("/build")
_RECORD = ".testbed-copied.json"
_LAST_SECONDS = 60.0
"""Seconds. Writing a single file of a build never takes longer."""

_ENVIRONMENT = {
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
}
_STACK = "7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]\n"
"""All that a kernel build reads below /proc: objtool reads it to detect a stack overflow.

With such a file /proc need not be mounted, which containers forbid by default.
"""
_LIST_PACKAGES = (
    'chroot "$1" dpkg-query --show --showformat \'${Package} ${Version}\\n\' > "$1/packages"'
)


class BuildRoot(ABC):
    """A system to build in. Its files stay from one command to the next.

    ::

        root.run(["make", "-C", "/work"], inputs={"/work": source}, outputs={built: "/work/x.ko"})

    :param packages: version by name, of all packages installed in it
    :param directory: where it is on this computer
    """

    def __init__(self, packages: Mapping[str, str], directory: Path) -> None:
        self.packages = packages
        self.directory = directory

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        timeout: float = 600,
    ) -> CommandResult:
        """Run a command in the build root to its end.

        :param env: variables of the command
        :param log: gets the command line and its output
        :param timeout: seconds until the command is stopped
        :raises CommandFailed: status other than 0, or the deadline passed
        :raises ProvisionError: the disk is full
        """
        with cache.disk_full_reported(self._path(self._records).parent):
            try:
                result = process.run(self._inside(argv, env or {}), log=log, timeout=timeout)
            except CommandFailed as e:
                raise CommandFailed(argv, e.status, e.output, log=log) from e
        return CommandResult(tuple(argv), result.status, result.stdout, result.stderr)

    def put(self, files: Mapping[PurePosixPath, Path]) -> None:
        """Bring files and directories of this computer up to date in the build root.

        :param files: path on this computer by path in the build root
        :raises ProvisionError: the disk is full
        """
        records = self._path(self._records)
        with cache.disk_full_reported(records.parent):
            for there, here in files.items():
                sync(here, self._path(there), records / cache.digest([str(there)])[:16])

    def take(self, files: Mapping[PurePosixPath, Path]) -> None:
        """Copy files and directories out of the build root.

        :param files: path on this computer by path in the build root
        :raises ProvisionError: the disk is full
        """
        for there, here in files.items():
            with cache.disk_full_reported(here.parent):
                copy_out(self._path(there), here)

    def holds(self, path: PurePosixPath) -> bool:
        """Whether the build root has such a file."""
        return self._path(path).exists()

    def bring_tree(self, files: Mapping[str, str], tree: Path, there: PurePosixPath) -> int:
        """Bring a kernel tree on this computer up to date in a work directory.

        :param files: digest by name, see :func:`smbdirect_testbed.kernel.tree.read_tree`
        :param there: the work directory
        :returns: how many files differed
        """
        here = self._path(there)
        record = here / _RECORD
        known = () if record.exists() else source_names(here)
        with cache.disk_full_reported(here):
            return sync_files(files, tree, here, record, known)

    @property
    @abstractmethod
    def _records(self) -> PurePosixPath:
        """The directory, in the build root, of what is known of files that were put in."""

    @abstractmethod
    def _inside(self, argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """The argv that, run on this computer, runs a command in the build root."""

    def _path(self, there: PurePosixPath) -> Path:
        return self.directory / there.relative_to("/")

    @abstractmethod
    def work_directory(
        self, name: str, progress: Progress
    ) -> AbstractContextManager[PurePosixPath]:
        """A directory in the build root that keeps its content from one use to the next.

        Other users wait for it. If its last use was interrupted, files may be half written; then
        the files of the last minute before the interruption are removed first.
        """


def provide_build_root(
    name: str,
    suites: tuple[str, ...],
    packages: tuple[str, ...],
    hooks: tuple[str, ...],
    progress: Progress,
) -> BuildRoot:
    """A build root with the given packages, which is made first if it is not in the cache.

    :param name: its purpose, a part of a file name
    :param hooks: mmdebstrap's customize hooks, which complete it
    :raises ProvisionError: it could not be made, or cannot be used by this user
    """
    key = cache.digest([_VERSION, *suites, "", *packages, "", *hooks])

    def make(directory: Path) -> None:
        _enter_argv(Path("/"))
        with progress.phase("build_root", f"making build root {name}"):
            cache.require_space(directory, _GIB, f"build root {name}")
            what = Bootstrap(suites, packages, (*hooks, _LIST_PACKAGES))
            log = cache.log_file(f"build-root-{name}")
            bootstrap_directory(what, directory / "root", log, progress)
            maps = directory / "root/proc/self/maps"
            maps.parent.mkdir()
            maps.write_text(_STACK)

    return _DirectoryBuildRoot(cache.provide("build-roots", f"{name}-{key[:16]}", make, progress))


class _DirectoryBuildRoot(BuildRoot):
    """A build root in a directory of the cache."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        root = directory / "root"
        lines = (root / "packages").read_text().splitlines()
        super().__init__(dict(line.split(" ", 1) for line in lines), root)

    @property
    def _records(self) -> PurePosixPath:
        return _WORK / ".inputs"

    def _inside(self, argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
        variables = {**_ENVIRONMENT, **env}
        command = ["env", "-i", *(f"{k}={v}" for k, v in variables.items()), *argv]
        return [*_enter_argv(self.directory), *command]

    @contextmanager
    def work_directory(self, name: str, progress: Progress) -> Iterator[PurePosixPath]:
        there = _WORK / name
        here = self._path(there)
        in_use = here.with_name(f"{name}.in-use")
        lock = f"build-{self._directory.name}-{name}"
        with cache.lock(lock, progress, f"the build directory {name}"):
            if in_use.exists():
                forget_last(here, _LAST_SECONDS)
                cache.remove(here / _RECORD)
            here.mkdir(parents=True, exist_ok=True)
            in_use.touch()
            try:
                yield there
            except TestbedError as e:
                # A compiler that ended by itself leaves no half-written file.
                if not isinstance(e, CommandFailed) or (e.status or -1) > 0:
                    in_use.unlink()
                raise
            in_use.unlink()


@functools.cache
def _enter_argv(root: Path) -> tuple[str, ...]:
    """A prefix for a command that makes it run in a build root, for this user.

    :raises ProvisionError: this user cannot run anything in a build root here
    """
    if os.geteuid() == 0:
        # chroot needs only privileges that a container has by default; mounting needs more.
        return ("chroot", os.fspath(root))
    hint = "run as root, or allow unprivileged user namespaces on this computer"
    if not shutil.which("bwrap"):
        raise ProvisionError(
            "bubblewrap (bwrap) is missing: an ordinary user needs it to build",
            hint="install the package bubblewrap",
        )
    argv = ["bwrap", "--unshare-user", "--uid", "0", "--gid", "0", "--unshare-ipc"]
    argv += ["--unshare-net", "--die-with-parent", "--bind", os.fspath(root), "/"]
    argv += ["--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/"]
    tried = process.run([*argv, "true"], check=False, timeout=30)
    if not tried.ok:
        raise ProvisionError(
            "this user may not create user namespaces, and building needs one",
            hint=hint,
            detail=tried.output,
        )
    return tuple(argv)
