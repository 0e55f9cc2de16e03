"""What git calls a tree's state.

A tree's ``.git`` may be somebody else's: its configuration can name programs for git to run (a file
system monitor, filters, hooks, transports). So git gets none of these options, reads the tree and
nothing else of this computer's users, writes nothing, and has no network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from smbdirect_testbed.lib import process
from smbdirect_testbed.lib.confinement import Confinement, landlock_version
from smbdirect_testbed.lib.errors import ProvisionError

_SYSTEM = tuple(
    Path(p) for p in ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/proc/self")
)
_SECONDS = 60
_LONGEST = 4096
_OPTIONS = ("core.fsmonitor=false", "core.hooksPath=/dev/null", "protocol.allow=never")
_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}


def described(tree: Path, parts: Iterable[str]) -> str | None:
    """A tree's last tag or commit, with ``-dirty`` if files were changed since.

    :param parts: the files and directories that count
    :returns: None for a tree that is no git tree of its own, or that git refuses
    """
    git_files = _git_files(tree)
    if not git_files:
        return None
    may = Confinement((tree, *git_files, *_SYSTEM), (Path("/dev/null"),))
    options = list(_OPTIONS)
    if landlock_version():
        # Of another user's tree nothing can do harm then.
        options.append(f"safe.directory={tree.resolve()}")

    def git(*words: str) -> str | None:
        settings = (word for option in options for word in ("-c", option))
        env = {**_ENVIRONMENT, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
        argv = ["git", *settings, "-C", str(tree), *words]
        done = process.run(argv, check=False, timeout=_SECONDS, env=env, confinement=may)
        return done.stdout.strip() if done.ok else None

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        if not commit:
            return None
        name = git("describe", "--tags", "--abbrev=12") or commit
        status = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
        return f"{name}-dirty" if git(*status, "--", *parts) else name
    except ProvisionError:
        return None


def _git_files(tree: Path) -> list[Path]:
    """Where the data of a tree's repository are, which may be elsewhere: as in a work tree."""
    found = [path for path in _directories(tree / ".git") if path.exists()]
    for directory in list(found):
        lines = _lines(directory / "objects/info/alternates")
        found += [directory / "objects" / line for line in lines]
    return [path for path in found if path.exists()]


def _directories(dot_git: Path) -> Iterator[Path]:
    yield dot_git
    for line in _lines(dot_git) if dot_git.is_file() else ():
        if line.startswith("gitdir: "):
            directory = dot_git.parent / line.removeprefix("gitdir: ")
            yield directory
            yield from (directory / common for common in _lines(directory / "commondir"))


def _lines(file: Path) -> list[str]:
    with suppress(OSError), file.open(errors="replace") as opened:
        return opened.read(_LONGEST).splitlines()
    return []
