"""User Mode Linux of a user's kernel tree: built once, and after an edit as far as it matters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from smbdirect_testbed.config.spec import DriverSpec
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.kernel.build_errors import compile_errors
from smbdirect_testbed.kernel.build_root import BuildRoot
from smbdirect_testbed.kernel.toolchain import KernelPackages, Toolchain, provide_toolchain
from smbdirect_testbed.kernel.tree import Snapshot, is_full, numbers, read_tree, tree_version
from smbdirect_testbed.kernel.uml import (
    CHANGES,
    MAKE,
    UmlKernel,
    compile_kernel,
    kernel_name,
    provide_uml_kernel,
)
from smbdirect_testbed.kernel.uml_config import UmlConfig
from smbdirect_testbed.lib import cache, paths
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.progress import Progress

_VERSION = "1"
_ORDINARY = UmlConfig()
_GIB = 2.0
_FACTS = "kernel.json"
_ESSENTIAL = (
    "CIFS_SMB_DIRECT",
    "EROFS_FS",
    "HOSTFS",
    "INFINIBAND",
    "OVERLAY_FS",
    "RDMA_RXE",
    "SMB_SERVER_SMBDIRECT",
    "UML_NET_VECTOR",
    "UML_PCI_OVER_VIRTIO",
)
"""Options without which there is no machine or no driver; kernels differ in others."""


def provide_kernel(
    spec: DriverSpec, image: Image, progress: Progress, config: UmlConfig = _ORDINARY
) -> UmlKernel:
    """The User Mode Linux for a driver: that of its own tree if this is a full one.

    :raises ProvisionError: the source cannot be had, or does not compile
    """
    if spec.path and is_full(spec.path):
        return provide_tree_kernel(spec.path, image, progress, config)
    return provide_uml_kernel(image, progress, config)


def provide_tree_kernel(
    tree: Path, image: Image, progress: Progress, config: UmlConfig = _ORDINARY
) -> UmlKernel:
    """User Mode Linux of a full tree as it is now, brought up to date first. The tree is only read.

    :raises UsageError: the tree cannot be read
    :raises ProvisionError: it does not compile, or is too different from the kernels known here
    """
    toolchain = provide_toolchain(image, progress)
    root = toolchain.build_root
    name = _name(tree, config)
    work = PurePosixPath("/build") / name
    with cache.lock(f"trees-{name}", progress, f"the kernel of {tree}"):
        snapshot = _read(tree, progress)
        identity = cache.digest([snapshot.identity, config.text, *MAKE])
        # Of the tree that modules are built against, too; an attempt that failed may have left
        # another there.
        built = work / f".testbed-{identity[:16]}"
        entry = _entry(tree, config)

        def make(directory: Path) -> None:
            release = _build(tree, snapshot, image, toolchain, directory, progress, config)
            root.mark(built)
            facts = {"release": release, "identity": identity}
            (directory / _FACTS).write_text(json.dumps(facts))

        sound = cache.find("kernels", name) and _facts(entry).get("identity") == identity
        if not sound or not root.holds(built):
            cache.provide("kernels", name, make, progress, force=True)
    return UmlKernel(
        digest=cache.digest([name, identity]),
        binary=entry / "linux",
        modules=entry / "modules",
        release=_facts(entry)["release"],
        toolchain=replace(toolchain, tree=work, architecture="um"),
    )


def _read(tree: Path, progress: Progress) -> Snapshot:
    record = paths.cache() / "trees" / f"{cache.digest([str(tree)])[:16]}.json"
    if record.exists():
        return read_tree(tree, record)
    with progress.phase("tree", f"reading {tree} for the first time"):
        return read_tree(tree, record)


def _build(
    tree: Path,
    snapshot: Snapshot,
    image: Image,
    toolchain: Toolchain,
    directory: Path,
    progress: Progress,
    config: UmlConfig,
) -> str:
    root, name = toolchain.build_root, _name(tree, config)
    cache.require_space(directory, _GIB, "building User Mode Linux")
    log = cache.log_file("uml-kernel")
    version = tree_version(tree) or "unknown version"

    def check(dropped: list[str]) -> None:
        if missing := [line for line in dropped if line[7:].partition("=")[0] in _ESSENTIAL]:
            raise ProvisionError(
                f"the kernel of {tree} ({version}) cannot have {', '.join(missing)}",
                hint="give a tree of Linux 7.2 or later",
            )
        if dropped:
            progress.say(f"the kernel of {tree} does without {', '.join(dropped)}")

    again = bool(_facts(_entry(tree, config)))
    text = f"building User Mode Linux of {tree}{'' if again else ' (the first time takes minutes)'}"
    with (
        progress.phase("uml_kernel", text),
        root.work_directory(name, progress) as work,
    ):
        try:
            if not root.holds(work / "Makefile"):
                _begin_with_distribution(root, image, version, work, config)
            root.run(["sh", "-c", 'rm -f "$0"/.testbed-????????????????', str(work)])
            root.bring_tree(snapshot.files, tree, work)
            return compile_kernel(root, work, directory, log, check, config)
        except CommandFailed as e:
            if e.status is None or e.status < 0:
                raise
            raise ProvisionError(
                f"the kernel of {tree} ({version}) does not build as User Mode Linux",
                hint=f"the full log is {log}",
                detail="\n".join(compile_errors(e.output, work)),
            ) from e


def _begin_with_distribution(
    root: BuildRoot, image: Image, version: str, work: PurePosixPath, config: UmlConfig
) -> None:
    """Copy what was built of the distribution's source, in place of building the same again."""
    built = PurePosixPath("/build") / kernel_name(KernelPackages.of(image), config)
    whole = root.holds(built / "linux") and not root.is_interrupted(built.name)
    if whole and numbers(version) == numbers(image.kernel_version):
        root.run(["cp", "-a", "--reflink=auto", f"{built}/.", str(work)])


def _name(tree: Path, config: UmlConfig) -> str:
    parts = [_VERSION, str(tree), CHANGES, config.fragment]
    return f"uml-tree-{cache.digest(parts)[:16]}"


def _entry(tree: Path, config: UmlConfig) -> Path:
    return paths.cache() / "kernels" / _name(tree, config)


def _facts(entry: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((entry / _FACTS).read_text())
    except FileNotFoundError:
        return {}
    return facts
