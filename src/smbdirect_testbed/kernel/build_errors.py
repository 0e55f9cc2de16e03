"""The error for a driver that does not compile: a mistake in it, or another kernel's driver."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from smbdirect_testbed.kernel.tree import is_full, numbers, tree_version
from smbdirect_testbed.lib import cache, paths
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError

_SHOWN_ERRORS = 10


def compile_errors(output: str, work: PurePosixPath) -> list[str]:
    """The error lines of a build's output, with paths as in the source.

    Without any, the last lines.
    """
    lines: dict[str, None] = {}
    directory = ""
    for line in output.splitlines():
        if entered := re.search(r": Entering directory '(.*)'", line):
            directory = entered[1].removeprefix(f"{work}/") + "/"
        if re.search(r"(: (fatal )?error: |^ERROR: |: undefined reference to )", line):
            shown = line.replace(f"{work}/", "")
            if shown == line and not re.match(r"/|ERROR", line) and not directory.startswith("/"):
                shown = directory + line
            lines[shown] = None
    return list(lines)[:_SHOWN_ERRORS] or output.rstrip().splitlines()[-_SHOWN_ERRORS:]


@dataclass(frozen=True)
class Origin:
    """The origin of code.

    :param description: for people
    :param tree: the user's tree, if it is part of one
    :param release: of the kernel that it is compiled for, if it is part of a tree
    """

    description: str
    tree: Path | None = None
    release: str = ""


def remember_fit(origin: Origin) -> None:
    """Remember that a tree compiles for a kernel, also after later edits."""
    if fit := _fit(origin):
        fit.parent.mkdir(parents=True, exist_ok=True)
        fit.touch()


def does_not_compile(
    origin: Origin, failed: CommandFailed, work: PurePosixPath, log: Path
) -> ProvisionError:
    """The error for code that the compiler refuses.

    If the tree and the kernel have different versions, one line says so in place of all errors.
    Once the tree has compiled for the kernel, errors are mistakes in the tree.

    :param work: where it was built
    :param log: all output of the build
    """
    tree, release = origin.tree, origin.release
    version = tree_version(tree) if tree else None
    fit = _fit(origin)
    fitted = fit is not None and fit.exists()
    if tree and version and numbers(version) != numbers(release) and not fitted:
        own = f"--driver {tree}" if is_full(tree) else "a full tree"
        return ProvisionError(
            f"{tree} is Linux {version}: its driver does not compile for {release}",
            hint=f"uml-rxe with {own} builds the tree's own kernel; the full log is {log}",
        )
    hint = f"the full log is {log}"
    if tree and not version and not fitted:
        hint = f"if nothing was edited there, it is too far from Linux {release}; {hint}"
    return ProvisionError(
        f"the driver from {origin.description} does not compile",
        hint=hint,
        detail="\n".join(compile_errors(failed.output, work)),
    )


def _fit(origin: Origin) -> Path | None:
    if not origin.tree:
        return None
    key = cache.digest([str(origin.tree), tree_version(origin.tree) or "", origin.release])
    return paths.cache() / "trees" / f"{key[:16]}.compiled"
