"""The kernel driver: what is loaded is what was built, and it comes and goes without a trace."""

from __future__ import annotations

import pytest

from smbdirect_testbed.scenario import Environment, LoadedDriver, RdmaType, ServerKind, SmbServer

_TIMES = 10

# One command for all: each takes longer to get into an emulated machine than the kernel needs to
# load a module. What is left of a module that was unloaded, or did not load, ends it.
_CYCLES = """
directory=$1 times=$2; shift 2
for m in "$@"; do reversed="$m $reversed"; done
i=0
while [ $i -lt $times ]; do
    rmmod $reversed || exit 1
    for m in "$@"; do
        [ ! -e /sys/module/$m ] || { echo "$m is still there"; exit 1; }
    done
    for m in "$@"; do insmod $directory/$m.ko || exit 1; done
    i=$((i + 1))
done
echo $i
"""


def _order(environment: Environment, names: list[str]) -> list[str]:
    """These modules in the order in which they were loaded: the kernel lists the last one first."""
    modules = environment.machine.run(["cat", "/proc/modules"]).stdout.splitlines()
    loaded = [line.split()[0] for line in modules]
    return [name for name in reversed(loaded) if name in names]


def _taint(environment: Environment) -> int:
    return int(environment.machine.run(["cat", "/proc/sys/kernel/tainted"]).stdout)


@pytest.mark.early
def test_loaded_from_our_build_in_order(environment: Environment, driver: LoadedDriver) -> None:
    assert driver.loaded() == {m.name: m.build_id for m in driver.built.modules}
    assert _order(environment, driver.names) == driver.names


@pytest.mark.needs(ServerKind.SMBD)
def test_unload_and_reload_ten_times(
    environment: Environment, driver: LoadedDriver, smbd: SmbServer
) -> None:
    """Whatever the kernel says meanwhile about itself fails this scenario, too."""
    taint = _taint(environment)
    # siw takes its RDMA links along, which belong to the environment.
    in_use = {end.rdma for link in environment.spec.links for end in link.ends}
    names = [n for n in driver.names if n != "siw" or RdmaType.SIW not in in_use]
    with smbd.stopped():
        assert not smbd.host.testinfra.process.filter(comm="smbd")
        arguments = [str(driver.directory), str(_TIMES), *names]
        cycles = environment.machine.run(["sh", "-c", _CYCLES, "cycles", *arguments], timeout=60)
        assert cycles.stdout.split() == [str(_TIMES)]
        driver.check()
        assert _order(environment, names) == names
    assert smbd.host.testinfra.process.filter(comm="smbd")
    assert _taint(environment) == taint
