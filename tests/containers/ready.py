"""An image in which this checkout has been set up, and the caches of this computer for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, ImageNotFound
from tests.containers.base import provide_base
from tests.containers.container import Container, container

from smbdirect_testbed.lib import cache, paths

_SUITE = "trixie"
_NAME = "smbdirect-testbed-ready"
_INSTALL = "apt-get update && apt-get install --yes --no-install-recommends git make"
USER = "someone"
"""An ordinary user of the image, who is not root and cannot become it."""


def provide_ready(client: docker.DockerClient, log: Path) -> str:
    """The id of an image in which set-up has been done; the same until what it depends on changes.

    :param log: grows with what set-up prints
    """
    base = provide_base(client, _SUITE)
    files = [(paths.PROJECT / name).read_bytes() for name in (".ci/setup", "pyproject.toml")]
    name = f"{_NAME}-{cache.digest([base, _INSTALL, *files])[:16]}"
    for known in (f"localhost/{name}", name):
        with suppress(ImageNotFound):
            return str(client.images.get(known).id)
    with container(client, base, log) as box:
        box.put_checkout()
        done = box.run(f"{_INSTALL} && .ci/setup && useradd --create-home {USER}")
        assert done.status == 0, done.output[-4000:]
        image = box.engines.commit(repository=name)
    _remove_older(client, str(image.id))
    return str(image.id)


def _remove_older(client: docker.DockerClient, image: str) -> None:
    """Remove what was set up for earlier states of this project: a gigabyte each."""
    for other in client.images.list():
        if other.id != image and any(f"{_NAME}-" in tag for tag in other.tags):
            # Another run of the tests may use it.
            with suppress(APIError):
                client.images.remove(str(other.id))


@contextmanager
def ready_container(
    client: docker.DockerClient, image: str, log: Path, **options: Any
) -> Iterator[Container]:
    """A container of that image, with this checkout as it is now and this computer's cache.

    :param options: of ``containers.create`` of the docker SDK
    """
    here = str(paths.cache().resolve())
    options.setdefault("volumes", {here: {"bind": here, "mode": "rw"}})
    environment = {"SMBDIRECT_TESTBED_CACHE": here, **options.pop("environment", {})}
    with container(client, image, log, environment=environment, **options) as box:
        box.put_checkout()
        yield box
