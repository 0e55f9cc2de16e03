"""Images of minimal systems, as a registry has them, from this computer's Debian mirror."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from smbdirect_testbed.image import mirror
from smbdirect_testbed.lib import cache, process
from smbdirect_testbed.lib.progress import Progress

_VERSION = "1"
_NAME = "smbdirect-testbed-tests"


def provide_base(client: docker.DockerClient, suite: str) -> str:
    """The id of an image with a Debian of a suite: packages of priority required, and apt.

    :raises ProvisionError: it could not be made
    """
    progress = Progress()
    key = cache.digest([_VERSION, suite, mirror.debian_mirror()])[:16]
    tag = f"{suite}-{key}"

    def make(directory: Path) -> None:
        with progress.phase("container", f"making a minimal Debian {suite} for containers"):
            _bootstrap(suite, directory / "root.tar")

    tar = cache.provide("container-bases", tag, make, progress) / "root.tar"
    image = _find(client, tag)
    if image is None:
        client.api.import_image_from_file(str(tar), repository=f"{_NAME}-{tag}")
        image = _find(client, tag)
    assert image
    return image


def _find(client: docker.DockerClient, tag: str) -> str | None:
    """The id of an image; Podman may give it a name as of a registry on this computer."""
    for name in (f"localhost/{_NAME}-{tag}", f"{_NAME}-{tag}"):
        with suppress(ImageNotFound):
            return str(client.images.get(name).id)
    return None


def _bootstrap(suite: str, tar: Path) -> None:
    options = ['Acquire::Languages "none"', *mirror.apt_options()]
    argv = ["mmdebstrap", "--variant=minbase", "--components=main", "--format=tar"]
    argv += [f"--mode={'root' if os.geteuid() == 0 else 'unshare'}"]
    argv += [f"--keyring={mirror.keyring()}", *(f"--aptopt={o}" for o in options)]
    argv += ["--dpkgopt=force-unsafe-io", suite, str(tar)]
    argv += [f"deb {mirror.debian_mirror()} {suite} main"]
    process.run(argv, timeout=900, log=cache.log_file(f"container-{suite}"))
