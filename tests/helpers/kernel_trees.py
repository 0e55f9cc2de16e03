"""A kernel tree of a few files, and an image with a kernel of a version."""

from __future__ import annotations

from pathlib import Path

from smbdirect_testbed.image.image import Image
from smbdirect_testbed.image.recipe import read_recipe

MAKEFILE = """\
# SPDX-License-Identifier: GPL-2.0
VERSION = 7
PATCHLEVEL = 4
SUBLEVEL = 0
EXTRAVERSION = -rc1
NAME = Somebody
"""
FILES = (
    *("Kconfig", "include/linux/kernel.h", "kernel/fork.c", "arch/um/Makefile"),
    *("arch/Kconfig", "arch/x86/um/Kconfig", "drivers/net/wireguard/generated/netlink.c"),
    *("fs/smb/Kconfig", "fs/smb/server/Kconfig", "drivers/gpu/drm/Makefile"),
)


def image_with(version: str) -> Image:
    """An image whose kernel has a version."""
    nothing = Path("/nowhere")
    release = f"{version}+deb13-amd64"
    packages = {f"linux-image-{release}": f"{version}-1"}
    return Image(read_recipe("trixie"), "d", nothing, nothing, nothing, nothing, release, packages)
