"""Kill -9 at random moments of a run: the next command removes all that was left, and nothing else.

A few moments are tried by default. ``SMBDIRECT_TESTBED_KILLS=50`` tries as many, and
``SMBDIRECT_TESTBED_SEED`` the same ones again.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.vm.conftest import Testbed

pytestmark = pytest.mark.vm

_KILLS = int(os.environ.get("SMBDIRECT_TESTBED_KILLS", "3"))
_SEED = int(os.environ.get("SMBDIRECT_TESTBED_SEED", random.randrange(1 << 32)))
_LONGEST_RUN = {"uml-rxe": 12.0, "rxe": 9.0}
"""Seconds within which a run of one scenario ends, by environment."""


def _traces(testbed: Testbed) -> dict[str, set[str]]:
    """What a run may leave: processes, mounts, files in memory, temporary files."""
    running = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = [*process.cmdline(), process.environ().get("SMBDIRECT_TESTBED_STATE", "")]
            if any(str(testbed.directory) in word for word in words):
                running.add(f"{process.pid} {' '.join(words)[:200]}")
    mounts = {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()}
    places = [Path("/dev/shm"), Path("/tmp")]
    ours = ("smbdirect", "vm_file", "uml", "libvirt")
    files = {str(f) for p in places for f in p.iterdir() if f.name.startswith(ours)}
    return {"processes": running, "mounts": mounts, "files": files}


@pytest.fixture
def bystander(testbed: Testbed) -> Iterator[str]:
    """An environment that is up meanwhile, and stays."""
    assert testbed.run("up", "uml-rxe").status == 0
    yield "uml-rxe"
    assert testbed.run("exec", "client", "--", "true").status == 0
    assert testbed.run("down").status == 0


@pytest.mark.parametrize("environment", list(_LONGEST_RUN))
def test_killed_at_random_moments(testbed: Testbed, bystander: str, environment: str) -> None:
    moments = random.Random(f"{_SEED} {environment}")
    assert testbed.run("run", environment, "-k", "test_links_are_active").status == 0
    killed = 0
    for number in range(_KILLS):
        before = _traces(testbed)
        seconds = moments.uniform(0.1, _LONGEST_RUN[environment])
        print(f"kill {number + 1} after {seconds:.2f} s; seed {_SEED}")
        proc = testbed.start("run", environment, "-k", "test_links_are_active or to-server")
        try:
            proc.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            proc.kill()
            proc.communicate(timeout=60)
            killed += 1
        assert testbed.run("prepare", environment).status == 0
        after = _traces(testbed)
        assert after == before, f"after {seconds:.2f} s; seed {_SEED}"
        assert [path.name for path in testbed.state.glob("*")] == [bystander]
    assert killed
