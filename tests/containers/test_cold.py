"""What the README says to type, in fresh containers with nothing in any cache, to the verdict.

Each takes minutes, so they run when asked for: ``.ci/test container``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest
from tests.containers.base import provide_base
from tests.containers.container import CHECKOUT, Container, container

from smbdirect_testbed.lib import paths

pytestmark = [pytest.mark.vm, pytest.mark.container_cold]

_USER = "someone"
_UID = 1000
_GIB = 1 << 30


@dataclass(frozen=True)
class Case:
    """A container that the README's lines are typed in.

    :param options: of the docker SDK
    :param user: who types ``make run``
    :param before: what root does first
    :param says: what the run says on the way
    """

    suite: str = "trixie"
    options: Mapping[str, Any] = field(default_factory=dict)
    user: str = "root"
    before: str = "true"
    says: str = ""


_SUDO = (
    f"apt-get update && apt-get install --yes sudo && useradd --create-home {_USER}"
    f" && echo '{_USER} ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/{_USER}"
)
# As a package that is not there, and whose installation the run cannot repair.
_NO_QEMU = "mkdir -p /usr/local/bin && ln -s /bin/false /usr/local/bin/qemu-system-x86_64"

CASES = {
    "debian-12": Case("bookworm"),
    "debian-13": Case("trixie"),
    "large-shm-noexec": Case(options={"shm_size": 4 * _GIB}),
    "ordinary-user": Case(user=_USER, before=_SUDO),
    "kvm": Case(options={"devices": ["/dev/kvm:/dev/kvm:rwm"]}),
    "no-virtual-machine": Case(before=_NO_QEMU, says="going on in uml-rxe"),
}


def readme_lines() -> list[str]:
    """The commands of the README's first section about commands, but for the project's tests."""
    section = (paths.PROJECT / "README.md").read_text().partition("\n## Two commands\n")[2]
    blocks = re.findall(r"^```\n(.*?)^```$", section.partition("\n## ")[0], re.M | re.S)
    commands = [line for block in blocks[:2] for line in block.splitlines()]
    first = [line for line in commands if line.startswith("apt-get ")]
    return [*first, *(line for line in commands if line.startswith("make run"))]


def test_the_readmes_lines() -> None:
    assert [line.split()[0] for line in readme_lines()] == ["apt-get", "make"]


@pytest.mark.parametrize("name", CASES)
def test_the_readmes_lines_end_with_a_verdict(
    engine: docker.DockerClient, tmp_path: Path, name: str, record_property: Callable[..., None]
) -> None:
    case = CASES[name]
    if name == "kvm" and not Path("/dev/kvm").exists():
        pytest.skip("this computer has no /dev/kvm to give to a container")
    image = provide_base(engine, case.suite)
    with container(engine, image, tmp_path / "log", **case.options) as box:
        box.put_checkout(owner=_UID if case.user != "root" else 0)
        assert box.run(case.before).status == 0
        install, make_run = readme_lines()
        installed = box.run(install)
        assert installed.status == 0, installed.output[-2000:]
        done = box.run(make_run, user=case.user, on_line=_end_after_the_verdict(box))
        seconds = round(installed.seconds + done.seconds)
        record_property("seconds", seconds)
        print(f"{name}: {seconds} s\n{_told(done.output)}")
        assert done.status == 0, done.output[-4000:]
        assert re.search(r"^passed: \d+ of \d+ passed, none failed", done.output, re.M)
        assert case.says in done.output
        box.run(f"test -e {CHECKOUT}/results/latest/report.html")


def _end_after_the_verdict(box: Container) -> Callable[[str], None]:
    """Have the run end as Ctrl-C does when it goes on building for later runs."""

    def end(line: str) -> None:
        if "that was the verdict" in line:
            # Ctrl-C's signal may be ignored there, as in what a shell starts in the background.
            box.run("pkill -TERM -o -f '^[^ ]*python[^ ]* .*smbdirect-testbed run'")

    return end


def _told(output: str) -> str:
    """The phases and the verdict."""
    return "\n".join(
        line
        for line in output.splitlines()
        if (": done in" in line or "passed" in line or "going on" in line) and "PASS " not in line
    )
