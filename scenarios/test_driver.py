"""The kernel driver: what is loaded is what was built, and it comes and goes without a trace."""

from __future__ import annotations

import pytest

from smbdirect_testbed.environment import Environment
from smbdirect_testbed.host import Host
from smbdirect_testbed.loaded_driver import LoadedDriver
from smbdirect_testbed.smb.server import SmbServer
from smbdirect_testbed.spec import Role

_TIMES = 10


def _order(environment: Environment, names: list[str]) -> list[str]:
    """These modules in the order in which they were loaded: the kernel lists the last one first."""
    modules = environment.machine.run(["cat", "/proc/modules"]).stdout.splitlines()
    loaded = [line.split()[0] for line in modules]
    return [name for name in reversed(loaded) if name in names]


def _taint(environment: Environment) -> int:
    return int(environment.machine.run(["cat", "/proc/sys/kernel/tainted"]).stdout)


def test_loaded_from_our_build_in_order(environment: Environment, driver: LoadedDriver) -> None:
    assert driver.loaded() == {m.name: m.build_id for m in driver.built.modules}
    assert _order(environment, driver.names) == driver.names


@pytest.mark.needs(Role.SERVER)
def test_unload_and_reload_ten_times(
    environment: Environment, driver: LoadedDriver, server: Host, smbd: SmbServer
) -> None:
    """Whatever the kernel says meanwhile about itself fails this scenario, too."""
    taint = _taint(environment)
    with smbd.stopped():
        for _ in range(_TIMES):
            driver.unload()
            assert driver.loaded() == {}
            driver.load()
            assert _order(environment, driver.names) == driver.names
    assert _taint(environment) == taint
