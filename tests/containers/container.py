"""A running container with this checkout in it."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import psutil
from docker.models.containers import Container as Engines
from tests.containers.host_settings import pip_settings

from smbdirect_testbed.lib import paths

CHECKOUT = "/srv/smbdirect-testbed"
_LABEL = "smbdirect-testbed-tests"
"""Of a container: the process of the tests that it belongs to."""


@dataclass(frozen=True)
class Outcome:
    """How a command in a container ended.

    :param seconds: how long it took
    """

    status: int
    output: str
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line that is not empty."""
        return ([line for line in self.output.splitlines() if line.strip()] or [""])[-1]


@dataclass(frozen=True)
class Container:
    """A container that does nothing but run commands.

    :param engines: the container, as the docker SDK has it
    :param log: grows with what they print
    """

    client: docker.DockerClient
    engines: Engines
    log: Path

    def run(
        self,
        script: str,
        *,
        user: str = "root",
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> Outcome:
        """Run lines of a shell in the checkout.

        :param on_line: is given each line of the output
        """
        client = self.client.api
        begun = time.monotonic()
        # As a login does, so that HOME is the user's.
        argv = ["su", user, "-c", f"set -e; cd {CHECKOUT}; {script}"]
        created = client.exec_create(self.engines.id, argv, environment=dict(environment or {}))
        lines = []
        with self.log.open("a") as log:
            log.write(f"\n$ [{user}] {script}\n")
            for line in _lines(client.exec_start(created["Id"], stream=True)):
                log.write(line)
                log.flush()
                lines.append(line)
                on_line(line)
        status = client.exec_inspect(created["Id"])["ExitCode"]
        return Outcome(status, "".join(lines), time.monotonic() - begun)

    def put_checkout(self, *, owner: int = 0) -> None:
        """Bring the files of this checkout as they are now, as root or another user."""
        argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(argv, cwd=paths.PROJECT, check=True, capture_output=True).stdout
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for name in filter(None, names.decode().split("\0")):
                if (paths.PROJECT / name).exists():
                    tar.add(paths.PROJECT / name, name, filter=_owned_by(owner))
        self.engines.exec_run(["install", "-d", "-o", str(owner), CHECKOUT])
        # What was set up stays; of an earlier checkout, nothing does.
        old = ["find", CHECKOUT, "-mindepth", "1", "-maxdepth", "1", "!", "-name", ".venv"]
        self.engines.exec_run([*old, "-exec", "rm", "-rf", "{}", "+"])
        self.engines.put_archive(CHECKOUT, data.getvalue())


@contextmanager
def container(
    client: docker.DockerClient, image: str, log: Path, **options: Any
) -> Iterator[Container]:
    """A container with an engine's default settings, and this computer's for pip.

    :param options: of ``containers.create`` of the docker SDK
    """
    settings = pip_settings()
    volumes = {**settings.volumes, **options.pop("volumes", {})}
    environment = {**settings.environment, **options.pop("environment", {})}
    created = client.containers.create(
        image,
        ["sleep", "infinity"],
        labels={_LABEL: str(os.getpid())},
        volumes=volumes,
        environment=environment,
        init=False,
        **options,
    )
    try:
        created.start()
        yield Container(client, created, log)
    finally:
        created.remove(force=True, v=True)


def remove_leftovers(client: docker.DockerClient) -> None:
    """Remove the containers of tests that were killed."""
    for left in client.containers.list(all=True, filters={"label": _LABEL}):
        if not psutil.pid_exists(int(left.labels[_LABEL])):
            left.remove(force=True, v=True)


def _owned_by(user: int) -> Callable[[tarfile.TarInfo], tarfile.TarInfo]:
    def change(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = user
        entry.uname = entry.gname = ""
        return entry

    return change


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace") + "\n"
    if rest:
        yield rest.decode(errors="replace")
