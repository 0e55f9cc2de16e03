"""A container engine to talk to: the one that runs on this computer, else a Podman of our own."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import docker
from docker.errors import DockerException

from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.process import kill_group
from smbdirect_testbed.lib.wait import wait_until

_ANSWER_SECONDS = 1800
"""No single request to an engine takes longer: to import an image, say."""

_START_SECONDS = 60.0

# Podman's defaults need a bridge, a journal, and higher limits than this process may have. What a
# container gets (capabilities, seccomp filter, /dev/shm) stays as it is.
_CONFIGURATION = """\
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
netns = "host"
log_driver = "k8s-file"
[engine]
events_logger = "file"
cgroup_manager = "cgroupfs"
"""


@contextmanager
def container_engine(storage: Path) -> Iterator[docker.DockerClient]:
    """A connection to an engine.

    :param storage: where a Podman of our own keeps images and containers
    :raises ProvisionError: none answers, and none can be started, with the reason
    """
    with _running_engine() or _podman(storage) as client:
        yield client


def _running_engine() -> AbstractContextManager[docker.DockerClient] | None:
    """An engine that the environment names, or Docker at its usual address."""
    try:
        return closing(docker.from_env(timeout=_ANSWER_SECONDS))
    except DockerException:
        return None


@contextmanager
def _podman(storage: Path) -> Iterator[docker.DockerClient]:
    if os.geteuid() != 0:
        raise ProvisionError("no container engine answers, and only root can start one here")
    if not shutil.which("podman") or not (runtime := _runtime()):
        raise ProvisionError("no container engine answers, and there is no podman with a runtime")
    storage.mkdir(parents=True, exist_ok=True)
    configuration, log = storage / "containers.conf", storage / "podman.log"
    limits = {"files": _limit(resource.RLIMIT_NOFILE), "processes": _limit(resource.RLIMIT_NPROC)}
    configuration.write_text(_CONFIGURATION.format(**limits))
    address = storage / "podman.sock"
    address.unlink(missing_ok=True)
    argv = ["podman", f"--runtime={runtime}", "--storage-driver=vfs", f"--root={storage}/root"]
    argv += [f"--runroot={storage}/run", f"--tmpdir={storage}/tmp"]
    argv += ["system", "service", "--time=0", f"unix://{address}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "CONTAINERS_CONF": str(configuration)},
            start_new_session=True,
        )
    try:
        yield wait_until(
            lambda: _answering(process, address, log),
            "podman to answer",
            timeout=_START_SECONDS,
            interval=0.1,
        )
    finally:
        kill_group(process)
        process.wait()


def _answering(
    process: subprocess.Popen[bytes], address: Path, log: Path
) -> docker.DockerClient | None:
    if process.poll() is not None:
        raise ProvisionError(
            "podman does not start here", detail=log.read_text(errors="replace")[-2000:]
        )
    try:
        return docker.DockerClient(f"unix://{address}", version="auto", timeout=_ANSWER_SECONDS)
    except DockerException:
        return None


def _limit(kind: int) -> int:
    """What a container's limit can be: what this process has, or what Podman leaves itself."""
    most = resource.getrlimit(kind)[1]
    name = {resource.RLIMIT_NOFILE: "fs/nr_open", resource.RLIMIT_NPROC: "kernel/pid_max"}[kind]
    ceiling = int((Path("/proc/sys") / name).read_text())
    return ceiling if most == resource.RLIM_INFINITY else min(most, ceiling)


def _runtime() -> str | None:
    """A runtime by its path; runc comes first, since crun refuses hybrid control groups."""
    for name in ("runc", "crun"):
        if path := shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
            return path
    return None
