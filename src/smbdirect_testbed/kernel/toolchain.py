"""Toolchains: a compiler, the headers of an image's kernel, and its source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from smbdirect_testbed.config import rdma
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.image.mmdebstrap import PackageMissing
from smbdirect_testbed.image.recipe import Recipe
from smbdirect_testbed.kernel.build_root import BuildRoot, provide_build_root
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.progress import Progress

SMB = "fs/smb"
SOURCE_PARTS = (SMB, *rdma.BUILT, "fs/nls/nls_ucs2_utils.h", "fs/nls/nls_ucs2_data.h")
"""The parts of a kernel tree that the driver is built from."""

_NO_COLLECTION = "--param=ggc-min-expand=1000 --param=ggc-min-heapsize=1000000"
QUICK = f"-g0 {_NO_COLLECTION}"
"""For the compiler: no debugging information, and no garbage collection, which costs time."""
WITH_LINES = f"-g1 {_NO_COLLECTION}"
"""Likewise, with the source lines of functions, for traces."""

HELPER_PARTS = (
    "scripts/asn1_compiler.c",
    "include/linux/asn1.h",
    "include/linux/asn1_ber_bytecode.h",
)
"""The source of ``asn1_compiler``, which the headers lack."""
_UNPACKED = PurePosixPath("/usr/src/testbed")


@dataclass(frozen=True)
class KernelPackages:
    """A kernel of the distribution.

    :param release: as printed by ``uname -r``
    :param version: of its Debian packages
    """

    release: str
    version: str

    @property
    def headers(self) -> str:
        """The Debian package with its headers."""
        return f"linux-headers-{self.release}"

    @property
    def source(self) -> str:
        """The Debian package with its source: ``linux-source-7.3``.

        :raises ProvisionError: the release does not look like one of Debian
        """
        version = re.match(r"\d+\.\d+", self.release)
        if not version:
            raise ProvisionError(f"kernel {self.release} is not a kernel of Debian")
        return f"linux-source-{version[0]}"

    @staticmethod
    def of(image: Image) -> KernelPackages:
        """The kernel of an image."""
        return KernelPackages(image.kernel_release, image.kernel_version)


@dataclass(frozen=True)
class Toolchain:
    """A build root for one kernel.

    :param kernel: the distribution's kernel; the build root has its headers and source
    :param tree: a tree in it to build modules against; None for the kernel's headers
    :param architecture: kbuild's name for it, if it is not this computer's
    :param image_root: if modules are built elsewhere: the build root with the source, which builds
        the programs that must match the image
    """

    kernel: KernelPackages
    build_root: BuildRoot
    tree: PurePosixPath | None = None
    architecture: str | None = None
    image_root: BuildRoot | None = None

    @property
    def headers(self) -> PurePosixPath:
        """The directory in the build root that modules are built against."""
        return self.tree or PurePosixPath("/usr/src") / self.kernel.headers

    @property
    def source(self) -> PurePosixPath:
        """The parts of the kernel's source in the build root, as in a kernel tree."""
        return _UNPACKED

    @property
    def work_name(self) -> str:
        """The name of a build directory for this kernel alone."""
        return f"modules-{self.headers.name}"


def provide_toolchain(image: Image, progress: Progress) -> Toolchain:
    """The toolchain for an image's kernel, which is made first if it is not in the cache.

    :raises ProvisionError: the archive no longer has this kernel's headers or source, or making
        it failed
    """
    kernel = KernelPackages.of(image)
    newest = provide_newest_toolchain(image.recipe, progress)
    if newest.kernel == kernel:
        return newest
    # The image was made on another day than the build root.
    exact = (f"{kernel.headers}={kernel.version}", f"{kernel.source}={kernel.version}")
    try:
        return Toolchain(kernel, _provide_root(image.recipe, exact, progress))
    except PackageMissing as e:
        raise ProvisionError(
            f"the archive no longer has {e.package} {kernel.version}, "
            f"which image {image.name} needs",
            hint="make the image again: smbdirect-testbed clean --cache, then run",
        ) from e


def provide_newest_toolchain(recipe: Recipe, progress: Progress) -> Toolchain:
    """The toolchain for the kernel of an image that is made today.

    So it can be made in parallel with the image, before the image's kernel is known for sure.

    :param recipe: of the image
    :raises ProvisionError: making it failed
    """
    headers = recipe.kernel.package.replace("linux-image", "linux-headers")
    root = _provide_root(recipe, (headers, "linux-source"), progress)
    found = [
        KernelPackages(name.removeprefix("linux-headers-"), version)
        for name, version in root.packages.items()
        if re.match(r"linux-headers-\d", name) and not name.endswith("-common")
    ]
    if len(found) != 1:
        raise ProvisionError(f"{headers} brings the headers of {len(found)} kernels, not of one")
    return Toolchain(found[0], root)


def _provide_root(recipe: Recipe, kernel: tuple[str, ...], progress: Progress) -> BuildRoot:
    compiler = ("bc", "bison", "flex", "gcc", "kmod", "libc6-dev", "make", "xz-utils")
    return provide_build_root("driver", recipe.suites, (*compiler, *kernel), _HOOKS, progress)


def _hook(command: str) -> str:
    return f"chroot \"$1\" sh -ec '{command}'"


_PARTS = " ".join(f'"*/{part}"' for part in (*SOURCE_PARTS, *HELPER_PARTS))
_TAR = "tar -x --strip-components=1 --wildcards --no-wildcards-match-slash"
# The headers package lacks asn1_compiler, which cifs and ksmbd need.
_HOOKS = (
    _hook(
        f"mkdir -p {_UNPACKED} && cd {_UNPACKED} && "
        f"xz -T0 -dc /usr/src/linux-source-*.tar.xz | {_TAR} {_PARTS}"
    ),
    _hook(
        f"cd {_UNPACKED} && for scripts in /usr/lib/linux-kbuild-*/scripts; do "
        "gcc -O2 -Iinclude -o $scripts/asn1_compiler scripts/asn1_compiler.c; done"
    ),
)
