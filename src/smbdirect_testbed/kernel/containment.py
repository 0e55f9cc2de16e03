"""What keeps a build to its own files, also when root starts it.

A tree's Makefiles are programs of somebody else's. They see a system with a compiler, read only,
and write to their work directory and to ``/tmp``; they have no network, no capabilities and no
processes but their own. bubblewrap does that by namespaces. A container does not permit these by
default: there it is done by chroot, Landlock and a seccomp filter, which need no permission.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from smbdirect_testbed.lib import process
from smbdirect_testbed.lib.confinement import Capability, Confinement
from smbdirect_testbed.lib.errors import ProvisionError

_SYSTEM = tuple(Path(p) for p in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"))
"""What programs of this computer need to run."""
_ETC = tuple(Path("/etc") / name for name in ("ld.so.cache", "ld.so.conf", "alternatives"))
_DEVICES = ("null", "zero", "full", "random", "urandom")
_NO_PRIVILEGES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--")
_HINT = "run as root, or allow unprivileged user namespaces on this computer"

REFUSED = (
    "this computer permits no namespaces: builds are kept to their files by chroot, "
    "Landlock and a seccomp filter"
)


@dataclass(frozen=True)
class Contained:
    """How to run a build's commands.

    :param prefix: what to put before a command
    :param confinement: for what runs then; None if the prefix does it all
    """

    prefix: tuple[str, ...]
    confinement: Confinement | None = None
    env: Mapping[str, str] = field(default_factory=dict)


def in_root(root: Path, writable: Sequence[PurePosixPath]) -> Contained:
    """Commands in a system of their own.

    :param root: the system, whose directories are this user's
    :param writable: directories in it that they may write to
    :raises ProvisionError: this user cannot run anything there
    """
    here = [root / there.relative_to("/") for there in writable]
    if has_namespaces():
        binds = _binds("--bind", zip(here, writable, strict=True))
        return Contained(
            (*_bwrap(), "--ro-bind", str(root), "/", *_fresh(), *binds, "--chdir", "/")
        )
    devices = tuple(root / "dev" / name for name in _DEVICES)
    confinement = Confinement(
        (root, *_SYSTEM, *_ETC),
        (*here, *devices),
        # For chroot and setpriv, which give them up.
        keeps=(Capability.SYS_CHROOT, Capability.SETPCAP),
    )
    # The root's own /tmp is others' as well.
    env = {"TMPDIR": str(writable[0])} if writable else {}
    return Contained(("chroot", str(root), *_NO_PRIVILEGES), confinement, env)


def on_this_computer(reads: Iterable[Path], writable: Sequence[Path]) -> Contained:
    """Commands with the programs of this computer.

    :param reads: what they see besides
    """
    seen = [path for path in (*_SYSTEM, *_ETC, *reads) if path.exists()]
    if has_namespaces():
        binds = _binds("--ro-bind", ((path, path) for path in seen))
        binds += _binds("--bind", ((path, path) for path in writable))
        return Contained((*_bwrap(), "--proc", "/proc", *_fresh(), *binds, "--chdir", "/"))
    devices = tuple(Path("/dev") / name for name in _DEVICES)
    reads = (*seen, Path("/proc"))
    return Contained((), Confinement(reads, (*writable, *devices)), {"TMPDIR": str(writable[0])})


@functools.cache
def has_namespaces() -> bool:
    """Whether builds get namespaces of their own here.

    :raises ProvisionError: they do not, and this user can build in no other way
    """
    if not shutil.which("bwrap"):
        if os.geteuid() == 0:
            return False
        raise ProvisionError(
            "bubblewrap (bwrap) is missing: an ordinary user needs it to build",
            hint="install the package bubblewrap",
        )
    tried = process.run(
        [*_bwrap(), "--ro-bind", "/", "/", *_fresh(), "true"], check=False, timeout=30
    )
    if tried.ok or os.geteuid() == 0:
        return tried.ok
    raise ProvisionError(
        "this user may not create user namespaces, and building needs one",
        hint=_HINT,
        detail=tried.output,
    )


def _bwrap() -> list[str]:
    argv = ["bwrap", "--unshare-all", "--cap-drop", "ALL", "--die-with-parent"]
    # Of an ordinary user it needs the namespace to map to; root has no use for another.
    return argv if os.geteuid() == 0 else [*argv, "--unshare-user", "--uid", "0", "--gid", "0"]


def _fresh() -> tuple[str, ...]:
    return "--dev", "/dev", "--tmpfs", "/tmp"


def _binds(option: str, paths: Iterable[tuple[Path, Path | PurePosixPath]]) -> tuple[str, ...]:
    return tuple(word for here, there in paths for word in (option, str(here), str(there)))
