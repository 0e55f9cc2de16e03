"""Building the driver against an image's kernel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from smbdirect_testbed.config import rdma
from smbdirect_testbed.config.spec import DriverSpec
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.kernel.build_errors import Origin, does_not_compile, remember_fit
from smbdirect_testbed.kernel.build_root import BuildRoot
from smbdirect_testbed.kernel.built_driver import (
    LAUNCHER,
    LIBRARY,
    MODULES,
    PRELOAD,
    WEAK_DEVICE,
    BuiltDriver,
    read_manifest,
    write_manifest,
)
from smbdirect_testbed.kernel.built_driver import WITH_LINES as LINES
from smbdirect_testbed.kernel.driver_source import SourceFiles, resolve
from smbdirect_testbed.kernel.toolchain import (
    SMB,
    SOURCE_PARTS,
    WITH_LINES,
    Toolchain,
    provide_toolchain,
)
from smbdirect_testbed.kernel.uml import UmlKernel
from smbdirect_testbed.lib import cache, paths
from smbdirect_testbed.lib.errors import CommandFailed
from smbdirect_testbed.lib.progress import Progress

_VERSION = "8"
"""Of this module: raise it when the same source gives a different driver."""

_GIB = 0.3
_SECONDS = 900
_COMMON = PurePosixPath(SMB, "common")
"""The directories of the modules that cifs and ksmbd share; kernels differ in their number."""

_OPTIONS = {
    "SMBDIRECT": "m",
    "CIFS_SMB_DIRECT": "y",
    "SMB_SERVER_SMBDIRECT": "y",
    **{traits.option: "m" for traits in rdma.BUILT.values() if traits.option},
}
"""Kernel options of the driver; the distribution's kernels have them switched off."""

_STRIP = 'for ko; do strip --strip-debug -o "${ko%.ko}.stripped" "$ko"; done'
"""What machines load is small; what explains a trace stays here."""

_OUR_CODE = ("include", "libsmbdirect", "smbdirect_socket", "preload")


def provide_driver(
    spec: DriverSpec, image: Image, progress: Progress, kernel: UmlKernel | None = None
) -> BuiltDriver:
    """The driver for a kernel, which is built first if it is not in the cache.

    :param kernel: the kernel; None for the image's own
    :raises UsageError: the spec's path holds no driver
    :raises ProvisionError: the source cannot be fetched, or does not compile
    """
    if kernel:
        target = Target((kernel.digest,), kernel.release, lambda: kernel.toolchain)
    else:
        release = image.kernel_release
        identity = (release, image.kernel_version)
        target = Target(identity, release, lambda: provide_toolchain(image, progress))
    return provide_for(target, spec, image, progress)


@dataclass(frozen=True)
class Target:
    """A kernel to build modules for.

    :param identity: equal for two kernels only if modules for one fit the other
    :param toolchain: makes the build root for it
    """

    identity: tuple[str, ...]
    release: str
    toolchain: Callable[[], Toolchain]


def provide_for(target: Target, spec: DriverSpec, image: Image, progress: Progress) -> BuiltDriver:
    """The driver for any kernel, built first if it is not in the cache; see provide_driver."""
    source = resolve(spec, image, progress)
    ours = our_code()
    digest = cache.digest([_VERSION, source.identity, ours.digest(), *target.identity])

    def make(directory: Path) -> None:
        cache.require_space(directory, _GIB, "building the driver")
        toolchain = target.toolchain()
        tree = directory / "source"
        source.write(tree)
        ours.write(tree)
        with progress.phase("driver", f"building driver from {source.description}"):
            origin = Origin(source.description, source.tree, target.release)
            modules = _build(origin, toolchain, tree, directory, progress)
            write_manifest(
                directory,
                digest,
                modules,
                source=source.description,
                version=source.version,
                kernel_release=target.release,
            )

    built = read_manifest(cache.provide("drivers", digest[:16], make, progress))
    # When it was built, the same files may have had another origin or version.
    return replace(built, source=source.description, version=source.version)


def _build(
    origin: Origin,
    toolchain: Toolchain,
    tree: Path,
    directory: Path,
    progress: Progress,
) -> tuple[str, ...]:
    """Build everything into ``directory``; return the modules' names in load order."""
    root = toolchain.build_root
    # A part of a tree may lack siw and nls; then the distribution's modules are used.
    missing = [part for part in SOURCE_PARTS if not (tree / part).exists()]
    distribution = {toolchain.source / part: tree / part for part in missing}
    (toolchain.image_root or root).take(distribution)
    with root.work_directory(toolchain.work_name, progress) as work:
        root.put({work / p: tree / p for p in (*SOURCE_PARTS, *_OUR_CODE)})
        run_steps(root, _module_steps(toolchain, work), work, origin)
        remember_fit(origin)
        found = root.run(["find", str(work / _COMMON), "-name", "*.ko"]).stdout.split()
        places = {PurePosixPath(f).stem: str(_COMMON) for f in sorted(found)} | MODULES
        built = {m: work / place / f"{m}.ko" for m, place in places.items()}
        built[PurePosixPath(WEAK_DEVICE).stem] = work / "smbdirect_socket" / WEAK_DEVICE
        root.run(["sh", "-ec", _STRIP, "strip", *map(str, built.values())])
        (directory / LINES).mkdir()
        root.take({file: directory / LINES / file.name for file in built.values()})
        root.take({f.with_suffix(".stripped"): directory / f.name for f in built.values()})
        if not toolchain.image_root:
            _build_programs(root, work, directory)
    if toolchain.image_root:
        build_programs(toolchain.image_root, tree, directory, progress)
    cache.remove(tree)
    return tuple(places)


def our_code() -> SourceFiles:
    """The C code of this project, as it is now."""
    return SourceFiles.read(paths.driver(), _OUR_CODE)


def build_programs(root: BuildRoot, tree: Path, directory: Path, progress: Progress) -> None:
    """Build only preload and library.

    :param root: matches the image in which they will run
    :param tree: holds our code
    """
    with root.work_directory("programs", progress) as work:
        root.put({work / p: tree / p for p in _OUR_CODE})
        _build_programs(root, work, directory)


def _build_programs(root: BuildRoot, work: PurePosixPath, directory: Path) -> None:
    steps = [["make", "-C", str(work / part)] for part in ("preload", "libsmbdirect")]
    run_steps(root, steps, work, Origin("this project"))
    files = {work / "preload" / f: directory / f for f in (PRELOAD, LAUNCHER)}
    files[work / "libsmbdirect" / LIBRARY] = directory / LIBRARY
    root.take(files)


def run_steps(
    root: BuildRoot, steps: Iterable[list[str]], work: PurePosixPath, origin: Origin
) -> None:
    """Run the commands of a build.

    :raises ProvisionError: a command failed, with the compiler's messages
    """
    log = cache.log_file("driver")
    for argv in steps:
        try:
            root.run(argv, log=log, timeout=_SECONDS)
        except CommandFailed as e:
            if e.status is None or e.status < 0:
                raise
            raise does_not_compile(origin, e, work, log) from e


def _module_steps(toolchain: Toolchain, work: PurePosixPath) -> list[list[str]]:
    """The commands that build all modules in a work directory."""
    # In one go: make needs longer to find out what to do than to compile a file.
    directories = f"obj-m := {' '.join(f'{d}/' for d in (SMB, *rdma.BUILT, 'smbdirect_socket'))}"
    source = f"SMBDIRECT_SRC={work / SMB / 'smbdirect'}"
    return [
        ["sh", "-c", 'echo "$1" >"$0/Kbuild"', str(work), directories],
        [*kbuild_command(toolchain, warn=False), source, f"M={work}", "modules"],
    ]


def kbuild_command(toolchain: Toolchain, *, warn: bool = True) -> list[str]:
    """The beginning of every command that builds modules for a toolchain's kernel.

    :param warn: let the compiler warn; warnings about the kernel's own code are not read here
    """
    kbuild = ["make", "-C", str(toolchain.headers), f"-j{os.cpu_count() or 1}"]
    flags = f"KCFLAGS={WITH_LINES}"
    if toolchain.architecture:
        kbuild += [f"ARCH={toolchain.architecture}"]
    else:
        kbuild += [f"CONFIG_{name}={value}" for name, value in _OPTIONS.items()]
        # BTF would take a third of the time, and nothing uses it.
        kbuild += ["CONFIG_DEBUG_INFO_BTF_MODULES="]
        flags = f"{flags} {' '.join(_defines())}"
    return [*kbuild, flags if warn else f"{flags} -w"]


def socket_arguments(
    work: PurePosixPath, source: PurePosixPath, symbols: PurePosixPath
) -> list[str]:
    """The commands that build our socket module.

    :param source: the directory smbdirect.ko is built in
    :param symbols: the file Module.symvers that knows smbdirect.ko
    """
    return [
        f"M={work / 'smbdirect_socket'}",
        f"SMBDIRECT_SRC={source}",
        f"KBUILD_EXTRA_SYMBOLS={symbols}",
        "modules",
    ]


def _defines() -> list[str]:
    """The driver's kernel options as the code sees them.

    A kernel of our own has them in its configuration.
    """
    return [
        f"-DCONFIG_{name}{'_MODULE' if value == 'm' else ''}=1" for name, value in _OPTIONS.items()
    ]
