"""Runs in containers with an engine's default settings, where everything has been built before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from tests.containers.container import Container, Outcome
from tests.containers.ready import provide_ready, ready_container

pytestmark = pytest.mark.vm

_RUN = ".venv/bin/smbdirect-testbed run"
_SCENARIO = "scenarios/test_rdma_link.py"
_GIB = 1 << 30
_HIDE = "mkdir -p /usr/local/bin && ln -sf /bin/false /usr/local/bin/{}"
"""Has a program fail, as if it did not work here."""


@pytest.fixture(scope="module")
def image(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> str:
    return provide_ready(engine, tmp_path_factory.mktemp("ready") / "log")


@pytest.fixture(scope="module")
def box(
    engine: docker.DockerClient, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """A container with an engine's default settings."""
    with ready_container(engine, image, tmp_path_factory.mktemp("box") / "log") as box:
        yield box


@pytest.fixture
def without(box: Container) -> Iterator[Any]:
    """Makes programs of the container fail, for one test."""
    hidden: list[str] = []

    def hide(program: str) -> None:
        hidden.append(program)
        box.run(_HIDE.format(program))

    yield hide
    for program in hidden:
        box.run(f"rm /usr/local/bin/{program}")


def result(box: Container) -> dict[str, Any]:
    """The last run's ``run.json``."""
    return dict(json.loads(box.run("cat results/latest/run.json").output))


def passed(done: Outcome) -> bool:
    """Whether a run's last line is that it passed."""
    return done.status == 0 and done.last_line.startswith("passed: ")


@pytest.mark.parametrize("environment", ["rxe", "uml-rxe"])
def test_both_carriers_work(box: Container, environment: str) -> None:
    done = box.run(f"{_RUN} {environment} {_SCENARIO}")
    assert passed(done), done.output
    assert result(box)["environment"]["environment"] == environment


def test_doctor_says_so(box: Container) -> None:
    done = box.run(".venv/bin/smbdirect-testbed doctor")
    assert done.status == 0
    assert done.last_line == "ready to run"
    assert "a domain ran in QEMU" in done.output


def test_without_user_mode_linux_a_virtual_machine_is_used(box: Container, without: Any) -> None:
    without("slirp4netns")
    done = box.run(f"{_RUN} {_SCENARIO}")
    assert "no machine can be started in uml-rxe: slirp4netns did not start" in done.output
    assert passed(done), done.output
    assert result(box)["environment"]["environment"] == "rxe"
    assert result(box)["notes"] == [
        "no machine could be started in uml-rxe: slirp4netns did not start"
    ]


def test_without_any_carrier_both_reasons_are_given(box: Container, without: Any) -> None:
    without("slirp4netns")
    without("qemu-system-x86_64")
    done = box.run(f"{_RUN} {_SCENARIO}")
    assert done.status == 3
    assert done.last_line.startswith("not provided: no carrier works here: uml-rxe: slirp4netns")
    assert "; rxe: libvirt could not start the machine" in done.last_line
    doctor = box.run(".venv/bin/smbdirect-testbed doctor")
    assert doctor.status == 3
    assert doctor.last_line == "cannot run: virtual machine, User Mode Linux"


def test_a_named_environment_is_not_replaced(box: Container, without: Any) -> None:
    without("qemu-system-x86_64")
    done = box.run(f"{_RUN} rxe {_SCENARIO}")
    assert done.status == 3
    assert done.last_line.startswith("not provided: libvirt could not start the machine")


def test_large_shared_memory_that_is_mounted_noexec(
    engine: docker.DockerClient, image: str, tmp_path: Path
) -> None:
    with ready_container(engine, image, tmp_path / "log", shm_size=4 * _GIB) as box:
        assert "noexec" in box.run("grep ' /dev/shm ' /proc/mounts").output
        done = box.run(f"{_RUN} uml-rxe {_SCENARIO}")
        assert passed(done), done.output


@pytest.fixture(scope="module")
def meagre(
    engine: docker.DockerClient, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """No network, no IPv6, a host name that nothing resolves, a small /tmp, a read-only home."""
    options = {
        "network_mode": "none",
        "sysctls": {"net.ipv6.conf.all.disable_ipv6": "1"},
        "hostname": "unresolvable",
        "tmpfs": {"/tmp": "size=64m,noexec", "/root": "ro"},
    }
    log = tmp_path_factory.mktemp("meagre") / "log"
    with ready_container(engine, image, log, **options) as box:
        yield box


def test_a_read_only_home_is_named(meagre: Container) -> None:
    done = meagre.run(f"{_RUN} rxe {_SCENARIO}")
    assert done.status == 3
    assert done.output.splitlines()[-2:] == [
        "smbdirect-testbed: /root/.local/state/smbdirect-testbed cannot be written to",
        "  set SMBDIRECT_TESTBED_STATE to a directory that can",
    ]


@pytest.mark.parametrize("environment", ["rxe", "uml-rxe"])
def test_a_meagre_container(meagre: Container, environment: str) -> None:
    # Some engines write it there.
    meagre.run("sed /unresolvable/d /etc/hosts >/run/hosts && cat /run/hosts >/etc/hosts")
    assert meagre.run("getent hosts unresolvable || ip -6 address").output == ""
    state = {"SMBDIRECT_TESTBED_STATE": "/var/lib/testbed"}
    done = meagre.run(f"{_RUN} {environment} {_SCENARIO}", environment=state)
    assert passed(done), done.output
