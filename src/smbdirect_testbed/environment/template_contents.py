"""The contents of an environment's template: everything that can be prepared before a clone.

These are steps of :func:`smbdirect_testbed.environment.provide.provide`. In a clone it finds them
done and only checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from smbdirect_testbed.carriers.carrier import TemplatePlan
from smbdirect_testbed.config.spec import DriverOrigin
from smbdirect_testbed.environment.blueprint import Blueprint
from smbdirect_testbed.evidence.capture import captured_host, start_capture
from smbdirect_testbed.kernel.built_driver import BuiltDriver
from smbdirect_testbed.machine.loaded_driver import (
    PREPARED,
    LoadedDriver,
    load_distribution_modules,
)
from smbdirect_testbed.machine.machine import Machine
from smbdirect_testbed.machine.running_agent import running_agent
from smbdirect_testbed.machine.topology import made_hosts
from smbdirect_testbed.smb.server import prepare
from smbdirect_testbed.smb.transports import samba_transports

# Programs that every run and every SMB scenario starts: a page of a program costs a hundred times
# more from the image than from memory.
_WARM_UP = """
for program in nsenter bash tee smbclient smbtorture; do
    $program --version
done >/dev/null 2>&1
:
"""


def template_plan(blueprint: Blueprint, name: str, built: BuiltDriver) -> TemplatePlan | None:
    """How a machine of an environment is prepared; None for a machine that boots.

    A driver from a user's tree is in no template: each edit would need a new one.

    :param name: the machine's
    """
    spec = blueprint.spec
    if spec.machine.cold:
        return None
    lasting = built if spec.driver.origin is not DriverOrigin.TREE else None
    digest = lasting.digest if lasting else "any driver"
    parts = (digest, name, repr(spec.hosts), repr(spec.links), repr(spec.servers))
    code = (t.code for t in blueprint.server_types.values() if t.can_be_in_template)
    return TemplatePlan((*parts, *code), partial(_prepare, blueprint, name, lasting))


def _prepare(
    blueprint: Blueprint, name: str, built: BuiltDriver | None, machine: Machine
) -> Mapping[str, str]:
    facts = {}
    with running_agent(machine):
        if built:
            driver = LoadedDriver(machine, built)
            driver.load()
            facts[PREPARED] = built.digest
        else:
            load_distribution_modules(machine)
        with made_hosts(blueprint.spec, {name: machine}, keep=True) as hosts:
            machine.run(["sh", "-c", _WARM_UP])
            if client := captured_host(hosts):
                start_capture(client)
            for server in blueprint.early_servers if built else ():
                kind = blueprint.server_types[server.kind]
                if kind.can_be_in_template and server.host in hosts:
                    samba = samba_transports(machine, driver.launcher)
                    facts |= prepare(kind.make(hosts[server.host], server.transports, samba))
    return facts
