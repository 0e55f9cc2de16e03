"""For comparison: how long virtme-ng takes to run a command in the same kernel, without KVM.

It boots from a directory by 9p, which here is a build root with the kernel's package in it, so that
it has the modules that go with the kernel.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from smbdirect_testbed.bench.measure import Figure
from smbdirect_testbed.image.image import provide_image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel.build_root import provide_build_root
from smbdirect_testbed.lib import cache, process
from smbdirect_testbed.lib.progress import Progress

_IMAGE = "trixie"
_PACKAGE = "virtme-ng==1.42"
_NEEDS = {"modprobe": "kmod", "busybox": "busybox-static"}
"""What virtme-ng needs on this computer: package by program."""

_DEADLINE = 180.0


def with_virtme(times: int, progress: Progress) -> Iterator[Figure]:
    """From typing virtme-ng's command to its end, of a command that does nothing.

    :param times: how often it is measured
    :raises ProvisionError: virtme-ng or what it boots cannot be had
    :raises CommandFailed: virtme-ng failed
    """
    missing = [package for program, package in _NEEDS.items() if not _found(program)]
    seconds: list[float] = []
    note = f"not measured: virtme-ng needs {', '.join(missing)} on this computer"
    if not missing:
        note = "boot, command, power off"
        installed = _installed(progress)
        env = {
            "PYTHONPATH": str(installed),
            "PATH": f"{installed / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        argv = _argv(progress)
        for _ in range(times):
            begun = time.monotonic()
            process.run(argv, timeout=_DEADLINE, env=env)
            seconds.append(time.monotonic() - begun)
    yield Figure(
        "virtme", "virtme-ng runs a command, no KVM, same kernel", "s", None, tuple(seconds), note
    )


def _argv(progress: Progress) -> list[str]:
    image = provide_image(read_recipe(_IMAGE), progress)
    packages = (
        f"linux-image-{image.kernel_release}={image.kernel_version}",
        *("bash", "iproute2", "kmod", "udev"),
    )
    root = provide_build_root("virtme", image.recipe.suites, packages, (), progress)
    kernel = root.directory / "boot" / f"vmlinuz-{image.kernel_release}"
    return [
        *("vng", "--disable-kvm", "--disable-monitor", "--force-9p"),
        *("--root", str(root.directory), "--run", str(kernel)),
        *("--memory", "1G", "--cpus", "2", "--exec", "true"),
    ]


def _installed(progress: Progress) -> Path:
    """A directory with virtme-ng in it, apart from what the testbed itself is made of."""

    def make(directory: Path) -> None:
        with progress.phase("virtme_ng", f"installing {_PACKAGE}, for comparison"):
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(directory)]
            process.run([*pip, _PACKAGE], timeout=300)

    return cache.provide("tools", _PACKAGE, make, progress)


def _found(program: str) -> bool:
    return bool(shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin"))
