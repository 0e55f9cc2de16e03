"""Build roots: Debian systems with a compiler, separate from this computer's system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePosixPath

from smbdirect_testbed.image.mmdebstrap import Bootstrap, bootstrap_directory
from smbdirect_testbed.kernel import containment
from smbdirect_testbed.kernel.containment import Contained
from smbdirect_testbed.kernel.tree import source_names
from smbdirect_testbed.kernel.tree_sync import forget_last, sync, sync_files
from smbdirect_testbed.lib import cache, process
from smbdirect_testbed.lib.errors import CommandFailed, TestbedError
from smbdirect_testbed.lib.process import CommandResult
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.lib.untrusted import UntrustedDirectory

_VERSION = "1"
_GIB = 1.5
_WORK = PurePosixPath("/build")
_LAST_SECONDS = 60.0
"""Seconds. Writing a single file of a build never takes longer."""

_in_use: ContextVar[tuple[PurePosixPath, ...]] = ContextVar("work directories", default=())
"""What builds may write to: the directories that this thread uses."""

_said: list[str] = []
"""What is said once only."""

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
    :param records: where no build can write: what is known of the files that were put in
    """

    def __init__(self, packages: Mapping[str, str], directory: Path, records: Path) -> None:
        self.packages = packages
        self.directory = directory
        self.records = records

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
        contained = self._contained()
        with cache.disk_full_reported(self.directory):
            try:
                result = process.run(
                    [*contained.prefix, *self._command(argv, {**contained.env, **(env or {})})],
                    log=log,
                    timeout=timeout,
                    confinement=contained.confinement,
                )
            except CommandFailed as e:
                raise CommandFailed(argv, e.status, e.output, log=log) from e
        return CommandResult(tuple(argv), result.status, result.stdout, result.stderr)

    def put(self, files: Mapping[PurePosixPath, Path]) -> None:
        """Bring files and directories of this computer up to date in the build root.

        :param files: path on this computer by path in the build root
        :raises ProvisionError: the disk is full
        """
        with cache.disk_full_reported(self.directory):
            for there, here in files.items():
                record = self.records / cache.digest([str(there)])[:16]
                sync(here, self._files, there.relative_to("/"), record)

    def take(self, files: Mapping[PurePosixPath, Path]) -> None:
        """Copy files and directories out of the build root.

        :param files: path on this computer by path in the build root
        :raises ProvisionError: the disk is full
        """
        for there, here in files.items():
            with cache.disk_full_reported(here.parent):
                self._files.take(there.relative_to("/"), here)

    def holds(self, path: PurePosixPath) -> bool:
        """Whether the build root has such a file."""
        return self._files.is_file(path.relative_to("/"))

    def mark(self, path: PurePosixPath) -> None:
        """Make an empty file in the build root."""
        self._files.write(path.relative_to("/"), b"")

    def bring_tree(self, files: Mapping[str, str], tree: Path, there: PurePosixPath) -> int:
        """Bring a kernel tree on this computer up to date in a work directory.

        :param files: digest by name, see :func:`smbdirect_testbed.kernel.tree.read_tree`
        :param there: the work directory
        :returns: how many files differed
        """
        here = self._path(there)
        record = self.records / f"{there.name}.copied.json"
        known = () if record.exists() else source_names(here)
        with cache.disk_full_reported(here):
            return sync_files(files, tree, UntrustedDirectory(here), record, known)

    @abstractmethod
    def _contained(self) -> Contained:
        """How commands run, which write to the work directories in use alone."""

    @abstractmethod
    def _command(self, argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """The command with its variables."""

    def _path(self, there: PurePosixPath) -> Path:
        return self.directory / there.relative_to("/")

    @property
    def _files(self) -> UntrustedDirectory:
        return UntrustedDirectory(self.directory)

    def is_interrupted(self, name: str) -> bool:
        """Whether a work directory may be half written: its last use was interrupted."""
        return False

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
        containment.has_namespaces()
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
        packages = dict(line.split(" ", 1) for line in lines)
        super().__init__(packages, root, directory / "records")

    def _contained(self) -> Contained:
        return containment.in_root(self.directory, _in_use.get())

    def _command(self, argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
        variables = {**_ENVIRONMENT, **env}
        return ["env", "-i", *(f"{k}={v}" for k, v in variables.items()), *argv]

    def is_interrupted(self, name: str) -> bool:
        return self._mark(name).exists()

    @contextmanager
    def work_directory(self, name: str, progress: Progress) -> Iterator[PurePosixPath]:
        there = _WORK / name
        here = self._path(there)
        in_use = self._mark(name)
        lock = f"build-{self._directory.name}-{name}"
        with cache.lock(lock, progress, f"the build directory {name}"):
            if not containment.has_namespaces() and not _said:
                _said.append(containment.REFUSED)
                progress.say(containment.REFUSED)
            if in_use.exists():
                forget_last(here, _LAST_SECONDS)
                (self.records / f"{name}.copied.json").unlink(missing_ok=True)
            self._files.make_directory(there.relative_to("/"))
            in_use.parent.mkdir(exist_ok=True)
            in_use.touch()
            token = _in_use.set((*_in_use.get(), there))
            try:
                yield there
            except TestbedError as e:
                # A compiler that ended by itself leaves no half-written file.
                if not isinstance(e, CommandFailed) or (e.status or -1) > 0:
                    in_use.unlink()
                raise
            finally:
                _in_use.reset(token)
            in_use.unlink()

    def _mark(self, name: str) -> Path:
        return self.records / f"{name}.in-use"
