"""Kill -9 at random moments of a run: the next command removes all that was left, and nothing else.

A few moments are tried by default. ``SMBDIRECT_TESTBED_KILLS=50`` tries as many, and
``SMBDIRECT_TESTBED_SEED`` the same parts of a run again.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.machines.conftest import Testbed

pytestmark = pytest.mark.vm

_KILLS = int(os.environ.get("SMBDIRECT_TESTBED_KILLS", "3"))
_SEED = int(os.environ.get("SMBDIRECT_TESTBED_SEED", random.randrange(1 << 32)))
_RUN = ("-k", "test_links_are_active or to-server")


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


@pytest.mark.parametrize("environment", ["uml-rxe", "rxe"])
def test_killed_at_random_moments(testbed: Testbed, bystander: str, environment: str) -> None:
    moments = random.Random(f"{_SEED} {environment}")
    assert testbed.run("prepare", environment).status == 0
    begun = time.monotonic()
    assert testbed.run("run", environment, *_RUN).status == 0
    whole = time.monotonic() - begun
    killed = 0
    while killed < _KILLS:
        before = _traces(testbed)
        seconds = moments.uniform(0.1, whole)
        print(f"kill {killed + 1} after {seconds:.2f} of {whole:.2f} s; seed {_SEED}")
        begun = time.monotonic()
        proc = testbed.start("run", environment, *_RUN)
        try:
            proc.communicate(timeout=seconds)
            whole = min(whole, time.monotonic() - begun)
        except subprocess.TimeoutExpired:
            proc.kill()
            proc.communicate(timeout=60)
            killed += 1
        assert testbed.run("prepare", environment).status == 0
        after = _traces(testbed)
        assert after == before, f"after {seconds:.2f} s; seed {_SEED}"
        assert [path.name for path in testbed.state.glob("*")] == [bystander]
