"""This computer as a build root: for modules of the kernel that it runs.

A kernel's headers contain programs (``modpost``, ``objtool``) that were linked for the system they
are installed on, and links to files all over it. The right compiler is the one that built the
kernel. A build root of another system could use neither.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from smbdirect_testbed.kernel.build_root import BuildRoot
from smbdirect_testbed.kernel.containment import Contained, on_this_computer
from smbdirect_testbed.lib import cache, paths, process
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.progress import Progress

_COMPILER = "asn1_compiler"
_TOOLS = ("gcc", "make")

# In a mount namespace of its own, so the headers stay unchanged.
_WITH_SCRIPTS = """
scripts=$(readlink -f "$1") ours=$2; shift 2
mount -t overlay -o "lowerdir=$ours:$scripts" testbed "$scripts"
exec "$@"
"""


class HostBuildRoot(BuildRoot):
    """This computer, with its own compiler.

    :param headers: the directory that modules are built against
    :param source: the files of a kernel's source that its ``asn1_compiler`` is made from, which
        distributions leave out of their headers
    """

    def __init__(self, headers: Path, source: Path) -> None:
        self._directory = paths.cache() / "local-build"
        super().__init__({}, Path("/"), self._directory / "records")
        for tool in _TOOLS:
            if not shutil.which(tool):
                raise ProvisionError(
                    f"there is no {tool} on this computer to build modules for its kernel with",
                    hint="install it, in the version that the kernel was built with",
                )
        self._headers = headers
        self._source = source
        self._work: Path | None = None

    def _contained(self) -> Contained:
        # What they lead to lies elsewhere in /usr/src, or in a tree of the computer's owner.
        links = (self._headers / name for name in ("", "source", "scripts", "tools"))
        headers = {link.resolve() for link in links}
        kernel = Path("/lib/modules") / os.uname().release
        sources = {(kernel / link).resolve() for link in ("build", "source")}
        reads = (*sorted(headers | sources), kernel, self._directory)
        contained = on_this_computer(reads, [self._work] if self._work else [])
        return replace(contained, prefix=(*self._with_scripts(), *contained.prefix))

    def _command(self, argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
        # Not the variables of who builds: in CI they hold passwords.
        variables = {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath), **env}
        return ["env", "-i", *(f"{k}={v}" for k, v in variables.items()), *argv]

    @contextmanager
    def work_directory(self, name: str, progress: Progress) -> Iterator[PurePosixPath]:
        directory = self._directory / name
        with cache.lock(f"local-build-{name}", progress, f"the build directory {name}"):
            # Modules for this computer's kernel are built seldom, not at every save.
            cache.remove(directory)
            directory.mkdir(parents=True)
            self._work = directory
            try:
                yield PurePosixPath(directory)
            finally:
                self._work = None
                cache.remove(directory)
                cache.remove(self.records)

    def _with_scripts(self) -> list[str]:
        """A prefix for a command, with which the headers have their ``asn1_compiler``."""
        scripts = self._headers / "scripts"
        if (scripts / _COMPILER).exists():
            return []
        ours = self._directory / "scripts"
        if not (ours / _COMPILER).exists():
            ours.mkdir(parents=True, exist_ok=True)
            code = self._source / "scripts" / f"{_COMPILER}.c"
            new = ours / f".{_COMPILER}.{os.getpid()}"
            include = f"-I{self._source / 'include'}"
            process.run(["gcc", "-O2", include, "-o", new, code], timeout=60)
            new.replace(ours / _COMPILER)
        return ["unshare", "--mount", "sh", "-ec", _WITH_SCRIPTS, "sh", str(scripts), str(ours)]
