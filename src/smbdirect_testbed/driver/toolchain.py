"""What the driver is built with: a compiler, an image's kernel headers, its kernel's source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from smbdirect_testbed.buildroot import BuildRoot, provide_build_root
from smbdirect_testbed.errors import ProvisionError
from smbdirect_testbed.image import Image
from smbdirect_testbed.mmdebstrap import PackageMissing
from smbdirect_testbed.progress import Progress
from smbdirect_testbed.recipe import read_recipe

SMB, SIW = "fs/smb", "drivers/infiniband/sw/siw"
SOURCE_PARTS = (SMB, SIW, "fs/nls/nls_ucs2_utils.h", "fs/nls/nls_ucs2_data.h")
"""The parts of a kernel tree that the driver is built from."""

_HELPER_PARTS = (
    "scripts/asn1_compiler.c",
    "include/linux/asn1.h",
    "include/linux/asn1_ber_bytecode.h",
)
_UNPACKED = PurePosixPath("/usr/src/testbed")


@dataclass(frozen=True)
class Toolchain:
    """A build root for one kernel.

    :param headers: the kernel's headers in it
    :param source: the parts of the kernel's source in it, as in a kernel tree
    :param architecture: as kbuild calls it, when it is not this computer's
    """

    build_root: BuildRoot
    headers: PurePosixPath
    source: PurePosixPath
    architecture: str | None = None

    @property
    def work_name(self) -> str:
        """The name of a build directory of this kernel's, so that two kernels share none."""
        return f"driver-{self.headers.name}"


def source_package(image: Image) -> str:
    """The Debian package with the source of an image's kernel: ``linux-source-7.3``."""
    version = re.match(r"\d+\.\d+", image.kernel_release)
    if not version:
        raise ProvisionError(f"image {image.name} has a kernel of unknown kind")
    return f"linux-source-{version[0]}"


def provide_toolchain(image: Image, progress: Progress) -> Toolchain:
    """The build root for an image's kernel, made first if it is not in the cache.

    :raises ProvisionError: the archive no longer has this kernel's headers or source, or making
        it failed
    """
    headers, source = f"linux-headers-{image.kernel_release}", source_package(image)
    version = image.kernel_version
    compiler = ("bc", "bison", "flex", "gcc", "kmod", "libc6-dev", "make", "xz-utils")
    packages = (*compiler, f"{headers}={version}", f"{source}={version}")
    suites = read_recipe(image.name).suites
    try:
        root = provide_build_root("driver", suites, packages, _hooks(headers, source), progress)
    except PackageMissing as e:
        raise ProvisionError(
            f"the archive no longer has {e.package} {version}, which image {image.name} needs",
            hint="smbdirect-testbed clean, then run again: that makes the image anew",
        ) from e
    return Toolchain(root, PurePosixPath("/usr/src") / headers, _UNPACKED / source)


def _hooks(headers: str, source: str) -> tuple[str, ...]:
    """Unpack the few needed parts of the source, and complete the headers.

    The headers package lacks ``asn1_compiler``, which cifs and ksmbd need.
    """
    parts = " ".join(f"{source}/{part}" for part in (*SOURCE_PARTS, *_HELPER_PARTS))
    unpack = (
        f"mkdir -p {_UNPACKED} && cd {_UNPACKED} && "
        f"xz -T0 -dc /usr/src/{source}.tar.xz | tar -x {parts}"
    )
    compile_ = (
        f"cd {_UNPACKED}/{source} && gcc -O2 -Iinclude"
        f" -o /usr/src/{headers}/scripts/asn1_compiler scripts/asn1_compiler.c"
    )
    return tuple(f"chroot \"$1\" sh -ec '{command}'" for command in (unpack, compile_))
