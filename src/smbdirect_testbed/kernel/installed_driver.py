"""The driver for the kernel that this computer runs: built for it, or installed there."""

from __future__ import annotations

import gzip
import lzma
import re
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from smbdirect_testbed.config.spec import DriverOrigin, DriverSpec
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.kernel.build import (
    Target,
    build_programs,
    kbuild_command,
    our_code,
    provide_driver,
    provide_for,
    run_steps,
    socket_arguments,
)
from smbdirect_testbed.kernel.build_errors import Origin
from smbdirect_testbed.kernel.built_driver import (
    MODULES,
    BuiltDriver,
    read_manifest,
    write_manifest,
)
from smbdirect_testbed.kernel.host_build import HostBuildRoot
from smbdirect_testbed.kernel.running import RunningKernel
from smbdirect_testbed.kernel.toolchain import HELPER_PARTS, SMB, Toolchain, provide_toolchain
from smbdirect_testbed.lib import cache, paths, process
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.progress import Progress

_VERSION = "1"
"""Of this module: raise it when the same modules give a different result."""

_SOCKET = "smbdirect_socket"


def provide_local_driver(
    spec: DriverSpec, image: Image, progress: Progress, kernel: RunningKernel
) -> BuiltDriver:
    """The driver for the running kernel, which is built first if it is not in the cache.

    :raises UsageError: the spec's path holds no driver
    :raises ProvisionError: there are no headers or no compiler, or it does not compile
    """
    if spec.origin is DriverOrigin.INSTALLED:
        return _provide_installed(image, progress, kernel)
    if kernel.release == image.kernel_release and image.kernel_version in kernel.version:
        return provide_driver(spec, image, progress)
    if spec.origin is DriverOrigin.DISTRIBUTION:
        _require_same_version(image, kernel)
    identity = ("running", kernel.release, kernel.version, _identity(kernel))
    toolchain = partial(_toolchain, image, progress, kernel)
    return provide_for(Target(identity, kernel.release, toolchain), spec, image, progress)


def _require_same_version(image: Image, kernel: RunningKernel) -> None:
    def version(release: str) -> str:
        return ".".join(re.findall(r"\d+", release)[:2])

    if version(kernel.release) != version(image.kernel_release):
        raise ProvisionError(
            f"carrier local: the distribution's driver is that of kernel {image.kernel_release}, "
            f"and this computer runs {kernel.release}",
            hint="have it built from that kernel's tree (--driver DIR), or take the installed one",
        )


def _toolchain(image: Image, progress: Progress, kernel: RunningKernel) -> Toolchain:
    headers = kernel.headers
    if headers is None:
        raise ProvisionError(
            f"carrier local: there is nothing to build modules against: no {kernel.modules}/build",
            hint="install the running kernel's headers",
        )
    of_image = provide_toolchain(image, progress)
    helpers = paths.cache() / "local-build" / "helpers"
    parts = {of_image.source / part: helpers / part for part in HELPER_PARTS}
    of_image.build_root.take(parts)
    return Toolchain(
        kernel=of_image.kernel,
        build_root=HostBuildRoot(headers, helpers),
        tree=PurePosixPath(headers.resolve()),
        image_root=of_image.build_root,
    )


def _identity(kernel: RunningKernel) -> str:
    """Equal for two kernels of one release only if modules for one fit the other."""
    if not kernel.headers:
        return ""
    files = (kernel.headers / name for name in (".config", "Module.symvers"))
    return cache.digest(file.read_bytes() for file in files if file.is_file())


def _provide_installed(image: Image, progress: Progress, kernel: RunningKernel) -> BuiltDriver:
    """The installed modules, and our own parts, which are built for them."""
    files = {name: file for name in MODULES if (file := kernel.file(name))}
    modules = {name: _content(file) for name, file in files.items()}
    ours = our_code()
    parts = (part for name, content in modules.items() for part in (name, content))
    digest = cache.digest([_VERSION, kernel.release, _identity(kernel), ours.digest(), *parts])

    def make(directory: Path) -> None:
        tree = directory / "source"
        ours.write(tree)
        for name, content in modules.items():
            (directory / f"{name}.ko").write_bytes(content)
        with progress.phase("driver", f"building what goes with the driver of {kernel.release}"):
            build_programs(provide_toolchain(image, progress).build_root, tree, directory, progress)
            if _SOCKET not in modules:
                _build_socket(
                    _toolchain(image, progress, kernel), kernel, tree, directory, progress
                )
        cache.remove(tree)
        order = tuple(n for n in MODULES if (directory / f"{n}.ko").exists())
        source, version = f"installed for kernel {kernel.release}", kernel.version
        write_manifest(directory, digest, order, source=source, version=version)

    return read_manifest(cache.provide("drivers", digest[:16], make, progress))


def _build_socket(
    toolchain: Toolchain, kernel: RunningKernel, tree: Path, directory: Path, progress: Progress
) -> None:
    """Build our socket module against the installed smbdirect.ko."""
    source = _smbdirect_source(kernel)
    root = toolchain.build_root
    with root.work_directory(_SOCKET, progress) as work:
        root.put({work / part: tree / part for part in ("include", _SOCKET)})
        symbols = toolchain.headers / "Module.symvers"
        step = [*kbuild_command(toolchain), *socket_arguments(work, source, symbols)]
        run_steps(root, [step], work, Origin("this project"))
        module = f"{_SOCKET}.ko"
        root.take({work / _SOCKET / module: directory / module})


def _smbdirect_source(kernel: RunningKernel) -> PurePosixPath:
    """The source of the installed smbdirect.ko; the socket uses its structures."""
    for link in ("build", "source"):
        found = kernel.modules / link / SMB / "smbdirect"
        if (found / "internal.h").is_file():
            return PurePosixPath(found.resolve())
    raise ProvisionError(
        f"carrier local: {kernel.modules}/source does not lead to the source of smbdirect.ko, "
        "which the socket module is built with",
        hint="install the kernel from its tree, or smbdirect_socket.ko with the driver",
    )


def _content(file: Path) -> bytes:
    """A module in the form that the kernel accepts."""
    data = file.read_bytes()
    match file.suffix:
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case ".zst":
            return _unpacked_by_zstd(file)
        case _:
            return data


def _unpacked_by_zstd(file: Path) -> bytes:
    with TemporaryDirectory() as directory:
        unpacked = Path(directory) / "module.ko"
        process.run(["zstd", "-dqf", file, "-o", unpacked], timeout=60)
        return unpacked.read_bytes()
