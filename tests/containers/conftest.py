"""An engine for all tests here; where there is none and none can be started, they are skipped."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest
from tests.containers.container import remove_leftovers
from tests.containers.engine import container_engine

from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import ProvisionError


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    try:
        with container_engine(paths.cache() / "containers") as client:
            remove_leftovers(client)
            yield client
    except ProvisionError as e:
        pytest.skip(f"{e.message}: {e.detail or ''}")
