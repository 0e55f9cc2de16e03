"""What an environment's template holds: all of the environment that can be there before its clones.

These are the steps of :func:`smbdirect_testbed.environment.provide`, which finds them done in a
clone and only checks: what is asked for once more is there already.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from smbdirect_testbed.agent_client import running_agent
from smbdirect_testbed.carriers.template import TemplatePlan
from smbdirect_testbed.driver.manifest import BuiltDriver
from smbdirect_testbed.loaded_driver import LoadedDriver
from smbdirect_testbed.machine import Machine
from smbdirect_testbed.spec import EnvironmentSpec
from smbdirect_testbed.topology import Place, made_hosts


def template_plan(spec: EnvironmentSpec, name: str, built: BuiltDriver) -> TemplatePlan | None:
    """How a machine of an environment is prepared; None for one that is to boot.

    :param name: the machine's
    """
    if spec.machine.cold:
        return None
    parts = (built.digest, name, repr(spec.hosts), repr(spec.links), repr(spec.servers))
    return TemplatePlan(parts, partial(_prepare, spec, name, built))


def _prepare(
    spec: EnvironmentSpec, name: str, built: BuiltDriver, machine: Machine
) -> Mapping[str, str]:
    with running_agent(machine) as agent:
        driver = LoadedDriver(machine, built)
        driver.load()
        with made_hosts(spec, {name: Place(machine, agent)}, keep=True):
            pass
    return {}
