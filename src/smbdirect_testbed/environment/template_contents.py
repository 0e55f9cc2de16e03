"""The contents of an environment's template: everything that can be prepared before a clone.

These are steps of :func:`smbdirect_testbed.environment.provide.provide`. In a clone it finds them
done and only checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from smbdirect_testbed.carriers.vm.template import TemplatePlan
from smbdirect_testbed.config.spec import DriverOrigin, EnvironmentSpec, ServerKind
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
from smbdirect_testbed.smb.smbd import prepare_smbd

# Programs that every run and every SMB scenario starts: a page of a program costs a hundred times
# more from the image than from memory.
_WARM_UP = """
for program in nsenter bash tee smbclient smbtorture; do
    $program --version
done >/dev/null 2>&1
:
"""


def template_plan(spec: EnvironmentSpec, name: str, built: BuiltDriver) -> TemplatePlan | None:
    """How a machine of an environment is prepared; None for a machine that boots.

    A driver from a user's tree is in no template: each edit would need a new one.

    :param name: the machine's
    """
    if spec.machine.cold:
        return None
    lasting = built if spec.driver.origin is not DriverOrigin.TREE else None
    digest = lasting.digest if lasting else "any driver"
    parts = (digest, name, repr(spec.hosts), repr(spec.links), repr(spec.servers))
    return TemplatePlan(parts, partial(_prepare, spec, name, lasting))


def _prepare(
    spec: EnvironmentSpec, name: str, built: BuiltDriver | None, machine: Machine
) -> Mapping[str, str]:
    facts = {}
    with running_agent(machine):
        if built:
            driver = LoadedDriver(machine, built)
            driver.load()
            facts[PREPARED] = built.digest
        else:
            load_distribution_modules(machine)
        with made_hosts(spec, {name: machine}, keep=True) as hosts:
            machine.run(["sh", "-c", _WARM_UP])
            if client := captured_host(hosts):
                start_capture(client)
            for server in spec.servers if built else ():
                if server.kind is ServerKind.SMBD and server.host in hosts:
                    facts |= prepare_smbd(hosts[server.host], driver, server.transports)
    return facts
