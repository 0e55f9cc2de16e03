"""Building the driver against an image's kernel."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

from smbdirect_testbed import cache, paths
from smbdirect_testbed.driver.manifest import (
    LAUNCHER,
    LIBRARY,
    PRELOAD,
    WEAK_DEVICE,
    BuiltDriver,
    read_manifest,
    write_manifest,
)
from smbdirect_testbed.driver.sources import DriverSource, SourceFiles, resolve
from smbdirect_testbed.driver.toolchain import (
    SIW,
    SMB,
    SOURCE_PARTS,
    Toolchain,
    provide_toolchain,
)
from smbdirect_testbed.errors import CommandFailed, ProvisionError
from smbdirect_testbed.image import Image
from smbdirect_testbed.progress import Progress
from smbdirect_testbed.spec import DriverSpec
from smbdirect_testbed.uml_kernel import UmlKernel

_VERSION = "5"
"""Of this module: to be raised when it makes another driver of the same source."""

_GIB = 0.3
_SECONDS = 900
_MODULES = {
    "smbdirect": "fs/smb/smbdirect",
    "siw": "drivers/infiniband/sw/siw",
    "cifs": "fs/smb/client",
    "ksmbd": "fs/smb/server",
    "smbdirect_socket": "smbdirect_socket",
}
"""Directory in the work directory by module, in the order they are loaded."""

_COMMON = PurePosixPath(SMB, "common")
"""Where the modules are that cifs and ksmbd share; their number differs between kernels."""

_OPTIONS = {
    "SMBDIRECT": "m",
    "CIFS_SMB_DIRECT": "y",
    "SMB_SERVER_SMBDIRECT": "y",
    "RDMA_SIW": "m",
}
"""Kernel options of the driver, which the distribution's kernels have switched off."""

_SHOWN_ERRORS = 10
_OUR_CODE = ("include", "libsmbdirect", "smbdirect_socket", "preload")


def provide_driver(
    spec: DriverSpec, image: Image, progress: Progress, kernel: UmlKernel | None = None
) -> BuiltDriver:
    """The driver for a kernel, built first if it is not in the cache.

    :param kernel: the kernel; None for the image's own
    :raises UsageError: the spec's path holds no driver
    :raises ProvisionError: the source cannot be had, or does not compile
    """
    source = resolve(spec, image, progress)
    ours = SourceFiles.read(paths.driver(), _OUR_CODE)
    target = [kernel.digest] if kernel else [image.kernel_release, image.kernel_version]
    digest = cache.digest([_VERSION, source.identity, ours.digest(), *target])

    def make(directory: Path) -> None:
        cache.require_space(directory, _GIB, "building the driver")
        toolchain = kernel.toolchain if kernel else provide_toolchain(image, progress)
        tree = directory / "source"
        source.write(tree)
        ours.write(tree)
        with progress.phase("driver", f"building driver from {source.description}"):
            modules = _build(source, toolchain, tree, directory, progress)
            write_manifest(
                directory,
                digest,
                modules,
                source=source.description,
                version=source.version,
                kernel_release=kernel.release if kernel else image.kernel_release,
            )

    built = read_manifest(cache.provide("drivers", digest[:16], make, progress))
    # The same files may have come from elsewhere, or under another version, when it was built.
    return replace(built, source=source.description, version=source.version)


def _build(
    source: DriverSource,
    toolchain: Toolchain,
    tree: Path,
    directory: Path,
    progress: Progress,
) -> tuple[str, ...]:
    """Build everything into ``directory``; return the modules' names in load order."""
    log = cache.log_file("driver")
    root = toolchain.build_root
    # A part of a tree may do without siw and nls, which are then the distribution's.
    missing = [part for part in SOURCE_PARTS if not (tree / part).exists()]
    root.run(["true"], outputs={toolchain.source / part: tree / part for part in missing})
    with root.work_directory(toolchain.work_name, progress) as work:
        root.run(["true"], inputs={work / p: tree / p for p in (*SOURCE_PARTS, *_OUR_CODE)})
        for argv in _steps(toolchain, work):
            try:
                root.run(argv, log=log, timeout=_SECONDS)
            except CommandFailed as e:
                if e.status is None or e.status < 0:
                    raise
                raise _does_not_compile(source, e, work, log) from e
        found = root.run(["find", str(work / _COMMON), "-name", "*.ko"]).stdout.split()
        places = {PurePosixPath(f).stem: str(_COMMON) for f in sorted(found)} | _MODULES
        outputs = {work / place / f"{m}.ko": directory / f"{m}.ko" for m, place in places.items()}
        outputs |= {work / "preload" / f: directory / f for f in (PRELOAD, LAUNCHER)}
        outputs[work / "libsmbdirect" / LIBRARY] = directory / LIBRARY
        outputs[work / "smbdirect_socket" / WEAK_DEVICE] = directory / WEAK_DEVICE
        root.run(["true"], outputs=outputs)
    cache.remove(tree)
    return tuple(places)


def _steps(toolchain: Toolchain, work: PurePosixPath) -> list[list[str]]:
    """The commands that build everything in a work directory."""
    smb = work / SMB
    kbuild = ["make", "-C", str(toolchain.headers), f"-j{os.cpu_count() or 1}"]
    kbuild += [f"ARCH={toolchain.architecture}"] if toolchain.architecture else _options()
    socket = [
        f"M={work / 'smbdirect_socket'}",
        f"SMBDIRECT_SRC={smb / 'smbdirect'}",
        f"KBUILD_EXTRA_SYMBOLS={smb / 'Module.symvers'}",
    ]
    return [
        *([*kbuild, f"M={work / part}", "modules"] for part in (SMB, SIW)),
        [*kbuild, *socket, "modules"],
        *(["make", "-C", str(work / part)] for part in ("preload", "libsmbdirect")),
    ]


def _options() -> list[str]:
    """The driver's kernel options for make and, as the code sees them, for the compiler.

    A kernel of our own has them in its configuration.
    """
    defines = [
        f"-DCONFIG_{name}{'_MODULE' if value == 'm' else ''}=1" for name, value in _OPTIONS.items()
    ]
    return [
        *(f"CONFIG_{name}={value}" for name, value in _OPTIONS.items()),
        # Debugging information and BTF would take a third of the time, and are not used.
        f"KCFLAGS=-g0 {' '.join(defines)}",
        "CONFIG_DEBUG_INFO_BTF_MODULES=",
    ]


def compile_errors(output: str, work: PurePosixPath) -> list[str]:
    """The lines of a build's output that say what is wrong, with paths as in the source."""
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
    return list(lines)[:_SHOWN_ERRORS]


def _does_not_compile(
    source: DriverSource, failed: CommandFailed, work: PurePosixPath, log: Path
) -> ProvisionError:
    errors = compile_errors(failed.output, work) or failed.output.rstrip().splitlines()[-10:]
    return ProvisionError(
        f"the driver from {source.description} does not compile",
        hint=f"the full log is {log}",
        detail="\n".join(errors),
    )
