"""User Mode Linux, built from a kernel's source: a kernel that runs as a program."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from smbdirect_testbed.config import rdma
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.image.recipe import Recipe
from smbdirect_testbed.kernel.build_root import BuildRoot
from smbdirect_testbed.kernel.toolchain import (
    QUICK,
    KernelPackages,
    Toolchain,
    provide_newest_toolchain,
    provide_toolchain,
)
from smbdirect_testbed.kernel.tree import UNUSED_DRIVERS
from smbdirect_testbed.kernel.uml_config import UmlConfig
from smbdirect_testbed.lib import cache
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.progress import Progress

_VERSION = "1"
"""Of this module: raise it when the same source gives a different kernel."""

_GIB = 2.0
_SECONDS = 3600
_FACTS = "kernel.json"
_ORDINARY = UmlConfig()
# Optimised less and without warnings, a kernel is built in two thirds of the time. The driver has
# its own flags.
MAKE = ("make", "ARCH=um", f"KCFLAGS={QUICK} -O1 -w")
_UNUSED_ARCHITECTURES = (
    *("alpha", "arc", "arm", "arm64", "csky", "hexagon", "loongarch", "m68k", "microblaze"),
    *("mips", "nios2", "openrisc", "parisc", "powerpc", "riscv", "s390", "sh", "sparc", "xtensa"),
)
_UNUSED = (
    *("Documentation/*/*", "sound/*/*.[ch]", "tools/testing", "tools/perf"),
    *(f"drivers/{name}/*.[ch]" for name in UNUSED_DRIVERS),
    *(f"arch/{name}/*.[chS]" for name in _UNUSED_ARCHITECTURES),
    "arch/*/boot/dts",
)
"""The parts of the source that our kernels do not need: most of it."""

_WITHOUT_RDMA = "\n".join(
    f"sed -i '/CONFIG_{traits.option}/d' {PurePosixPath(source).parent}/Makefile"
    for source, traits in rdma.BUILT.items()
)

_REPAIRS = r"""
# A processor that is not up yet frees memory; with kmemleak that is an RCU callback.
sed -i -e 's/data = uml_kmalloc(sizeof(\*data), UM_GFP_ATOMIC);/static struct cpu_thread_data all[CONFIG_NR_CPUS];\n\tdata = \&all[cpu];/' \
    -e '/^\tkfree(data);$/d' arch/um/os-Linux/smp.c
# libc's strerror() allocates memory, here under a spinlock.
sed -i -e 's/, %s\\n", fd, strerror(errno)/, errno %d\\n", fd, errno/' arch/um/os-Linux/irq.c
# Locks that interrupts take are taken with these switched on.
sed -i -e '/^static void vector_\(reset_stats\|get_ethtool_stats\)(/,/^}/s/spin_\(un\)\?lock(/spin_\1lock_bh(/' \
    arch/um/drivers/vector_kern.c
"""  # noqa: E501
"""Mistakes of User Mode Linux 7.3 at its boot: lockdep ends with the first that it sees."""

# The driver is built out of tree, from whatever source is under test, so the kernel comes without
# it. A static program runs on any computer; the network driver forbids that for the sake of
# transports that look up names, which are not used here. With 100 ticks a second an RCU grace
# period takes so long that destroying some connections, with slab caches of their own, holds up
# new ones for seconds.
CHANGES = rf"""
sed -i '/CONFIG_SMBFS/d' fs/Makefile
{_WITHOUT_RDMA}
sed -i '/^config UML_NET_VECTOR/,/^config /{{/select MAY_HAVE_RUNTIME_DEPS/d}}' arch/um/drivers/Kconfig
sed -i '/^config HZ$/,/^config /s/default 100$/default 1000/' arch/um/Kconfig
{_REPAIRS}
"""  # noqa: E501


@dataclass(frozen=True)
class UmlProgram:
    """What a machine is started from.

    :param binary: the kernel
    :param modules: what belongs in ``/lib/modules/RELEASE`` of a machine that it runs in
    :param release: as ``uname -r`` says it
    """

    binary: Path
    modules: Path
    release: str


@dataclass(frozen=True)
class UmlKernel(UmlProgram):
    """A built kernel that modules can be built for.

    :param digest: of all that it was made from
    :param toolchain: builds the modules
    """

    digest: str
    toolchain: Toolchain


def is_cached(image: Image, config: UmlConfig = _ORDINARY) -> bool:
    """Whether the kernel for an image is there, so that no one has to wait for it."""
    return find_uml_program(image, config) is not None


def find_uml_program(image: Image, config: UmlConfig = _ORDINARY) -> UmlProgram | None:
    """User Mode Linux of the same source as an image's kernel, if it is in the cache."""
    entry = cache.find("kernels", kernel_name(KernelPackages.of(image), config))
    return _program(entry) if entry else None


def provide_uml_kernel(
    image: Image, progress: Progress, config: UmlConfig = _ORDINARY
) -> UmlKernel:
    """User Mode Linux of the same source as an image's kernel, built first if it is not there.

    :raises ProvisionError: the source cannot be had, or does not compile
    """
    return _provide(provide_toolchain(image, progress), progress, config)


def provide_newest_uml_kernel(
    recipe: Recipe, progress: Progress, config: UmlConfig = _ORDINARY
) -> UmlKernel:
    """User Mode Linux for an image that may not be there yet.

    :param recipe: of the image
    :raises ProvisionError: the source cannot be had, or does not compile
    """
    return _provide(provide_newest_toolchain(recipe, progress), progress, config)


def _provide(toolchain: Toolchain, progress: Progress, config: UmlConfig) -> UmlKernel:
    name = kernel_name(toolchain.kernel, config)
    tree = PurePosixPath("/build") / name

    def make(directory: Path) -> None:
        cache.require_space(directory, _GIB, "building User Mode Linux")
        with (
            progress.phase("uml_kernel", "building User Mode Linux (once; some 5 minutes)"),
            toolchain.build_root.work_directory(name, progress) as work,
        ):
            release = _build(toolchain, work, directory, config)
        (directory / _FACTS).write_text(json.dumps({"release": release}))

    entry = cache.provide("kernels", name, make, progress)
    if not toolchain.build_root.holds(tree / "linux"):
        # The tree, which modules are built against, went with an earlier build root.
        entry = cache.provide("kernels", name, make, progress, force=True)
    return UmlKernel(
        **vars(_program(entry)),
        digest=name.rpartition("-")[2],
        toolchain=replace(toolchain, tree=tree, architecture="um"),
    )


def _program(entry: Path) -> UmlProgram:
    """What is in an entry of the cache."""
    release = json.loads((entry / _FACTS).read_text())["release"]
    return UmlProgram(entry / "linux", entry / "modules", release)


def kernel_name(kernel: KernelPackages, config: UmlConfig = _ORDINARY) -> str:
    """The name of a kernel in the cache, and of the tree that it is built in."""
    parts = [_VERSION, kernel.source, kernel.version, config.text, CHANGES, *MAKE]
    return f"uml-{cache.digest(parts)[:16]}"


def _build(toolchain: Toolchain, work: PurePosixPath, directory: Path, config: UmlConfig) -> str:
    """Build kernel and modules and put them into ``directory``; return the release."""
    root, package = toolchain.build_root, toolchain.kernel.source
    log = cache.log_file("uml-kernel")
    exclude = [f"--exclude={package}/{pattern}" for pattern in _UNUSED]
    unpack = ["tar", "-I", "xz -T0", "-xf", f"/usr/src/{package}.tar.xz", "-C", str(work)]

    def check(dropped: list[str]) -> None:
        if dropped:
            raise ProvisionError(
                f"the kernel's configuration cannot have {', '.join(dropped)}",
                hint=f"see {' and '.join(map(str, config.files))}",
            )

    try:
        root.run([*unpack, "--strip-components=1", *exclude], log=log, timeout=_SECONDS)
        return compile_kernel(root, work, directory, log, check, config)
    except CommandFailed as e:
        raise ProvisionError(
            "User Mode Linux does not build",
            hint=f"the full log is {log}",
            detail="\n".join(e.output.rstrip().splitlines()[-15:]),
        ) from e


def compile_kernel(
    root: BuildRoot,
    work: PurePosixPath,
    directory: Path,
    log: Path,
    check: Callable[[list[str]], None],
    options: UmlConfig = _ORDINARY,
) -> str:
    """Build kernel and modules of the source that lies in a work directory.

    :param directory: gets them
    :param check: is given the lines of ``options`` that this kernel does not have
    :returns: the kernel's release
    :raises CommandFailed: it does not compile, for one
    """
    config = work / "testbed.config"
    installed = work / "testbed.out"

    def run(*argv: str) -> str:
        enter = ["sh", "-ec", 'cd "$0"; exec "$@"', str(work)]
        return root.run([*enter, *argv], log=log, timeout=_SECONDS).stdout

    run("sh", "-ec", CHANGES)
    run("sh", "-c", 'printf %s "$1" >"$0"', str(config), options.text)
    run(*MAKE, "allnoconfig", f"KCONFIG_ALLCONFIG={config}")
    check(options.dropped(run("cat", ".config")))
    # One more than there are processors, for those that wait for the disk.
    run(*MAKE, f"-j{(os.cpu_count() or 1) + 1}", "linux", "modules")
    run("rm", "-rf", str(installed))
    run(*MAKE, "modules_install", f"INSTALL_MOD_PATH={installed}")
    release = run("cat", "include/config/kernel.release").strip().splitlines()[-1]
    modules = installed / "lib/modules" / release
    # It leads to the tree, which no machine sees.
    run("rm", "-f", str(modules / "build"))
    root.take({work / "linux": directory / "linux", modules: directory / "modules"})
    return release
