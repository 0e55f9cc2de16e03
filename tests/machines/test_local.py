"""The carrier local, for real: a User Mode Linux plays a private runner with the driver installed.

The runner sees this computer's files, and writes to none of them: there the testbed is run, on a
kernel in which it may load modules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from smbdirect_testbed.carriers.uml.provide import UmlMachine, uml_machine
from smbdirect_testbed.config.spec import DriverSpec, MachineSpec
from smbdirect_testbed.image.image import provide_image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel.build import provide_driver
from smbdirect_testbed.kernel.uml import provide_uml_kernel
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.process import CommandResult
from smbdirect_testbed.lib.progress import Progress

pytestmark = pytest.mark.vm

_ROOT = "/run/runner/root"

# A copy-on-write view of this computer, with the machine's own kernel interfaces in it, and the
# driver in /lib/modules as its owner would have installed it.
_MAKE_RUNNER = f"""
set -e
driver=$1; shift
mkdir -p /run/runner/here {_ROOT}
mount -t tmpfs -o size=2G runner /run/runner/
mkdir -p /run/runner/here /run/runner/upper /run/runner/work {_ROOT}
# busybox: its mount passes on options as they are, and hostfs has a path there.
busybox mount -t hostfs -o / none /run/runner/here
mount -t overlay -o lowerdir=/run/runner/here,upperdir=/run/runner/upper,workdir=/run/runner/work \\
    runner {_ROOT}
cd {_ROOT}
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs run run
mkdir run/state run/mount run/results
release=$(uname -r)
rm -rf "usr/lib/modules/$release"
mkdir -p "usr/lib/modules/$release/extra"
cp -r /testbed/modules/* "usr/lib/modules/$release/"
for module in "$@"; do
    cp "/run/runner/here$driver/$module.ko" "usr/lib/modules/$release/extra/"
done
depmod --basedir {_ROOT} "$release"
"""

# What a run may leave changed: nothing of this.
_LOOK = """
cut -d' ' -f1 /proc/modules | sort
ls -A /sys/class/net /sys/class/infiniband /run /run/state /sys/block/loop*/loop 2>/dev/null
find /sys/fs/cgroup -mindepth 1 -type d
cut -d' ' -f2 /proc/mounts
for p in /proc/[0-9]*; do readlink $p/ns/net $p/ns/pid; done | sort -u
"""


# Run a command until it says something, and no longer.
_KILL_WHEN = """
said=$1; shift
"$@" >/run/killed.log 2>&1 &
until grep -qF "$said" /run/killed.log; do
    kill -0 $! || { cat /run/killed.log; exit 1; }
    sleep 0.1
done
kill -KILL $!
wait $!
cat /run/killed.log
"""


@dataclass(frozen=True)
class Runner:
    """A private runner."""

    machine: UmlMachine

    def command(self, *arguments: str) -> list[str]:
        variables = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
            "HOME": str(Path.home()),
            "SMBDIRECT_TESTBED_CACHE": str(paths.cache()),
            "SMBDIRECT_TESTBED_STATE": "/run/state",
            "SMBDIRECT_TESTBED_RESULTS": "/run/results",
        }
        there = ["env", "-i", *(f"{k}={v}" for k, v in variables.items())]
        return ["chroot", _ROOT, *there, sys.executable, "-m", "smbdirect_testbed", *arguments]

    def testbed(self, *arguments: str) -> CommandResult:
        """Run the testbed there to its end."""
        done = self.machine.run(self.command(*arguments), timeout=170, check=False)
        print(done.output)
        return done

    def state(self) -> str:
        """All that must be the same after a run as before it."""
        return self.machine.run(["chroot", _ROOT, "sh", "-c", _LOOK], check=False).stdout


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    progress = Progress()
    image = provide_image(read_recipe("trixie"), progress)
    kernel = provide_uml_kernel(image, progress)
    driver = provide_driver(DriverSpec(), image, progress, kernel)
    directory = tmp_path_factory.mktemp("runner")
    size = MachineSpec(cpus=2, memory=3072)
    here = Path("/")
    with uml_machine("runner", image, kernel, size, directory, progress, sees=here) as machine:
        arguments = [str(driver.directory), *(m.name for m in driver.modules)]
        machine.run(["sh", "-c", _MAKE_RUNNER, "make", *arguments], timeout=60)
        yield Runner(machine)


def test_scenarios_pass_and_nothing_is_left(runner: Runner) -> None:
    before = runner.state()
    done = runner.testbed("run", "local-rxe", "-k", "rping or links_are_active")
    assert done.status == 0
    assert "passed" in done.output
    assert runner.state() == before


def test_what_a_killed_run_left_is_removed(runner: Runner) -> None:
    before = runner.state()
    script = [
        "sh",
        "-c",
        _KILL_WHEN,
        "kill",
        "starting smbd ...",
        *runner.command("up", "local-rxe"),
    ]
    print(runner.machine.run(script, timeout=120).output)
    assert "smbdirect_socket" in runner.state()
    assert "orphan" in runner.testbed("status").output
    assert runner.testbed("clean", "--yes").status == 0
    assert runner.state() == before
