"""An environment's spec, and what the names in it stand for: looked up once and passed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from smbdirect_testbed.carriers.carrier import Carrier
from smbdirect_testbed.carriers.table import carrier
from smbdirect_testbed.config.kinds import ServerKind
from smbdirect_testbed.config.spec import DriverOrigin, EnvironmentSpec, ServerSpec, Stack
from smbdirect_testbed.image.recipe import Recipe, read_recipe
from smbdirect_testbed.lib.errors import UsageError
from smbdirect_testbed.smb.servers import ServerType, server_type


@dataclass(frozen=True)
class Blueprint:
    """What an environment is provided from::

        blueprint = resolve(load_environment("rxe"))
        with provide(blueprint, progress, directory) as environment:
            ...

    :param recipe: of its image
    :param server_types: the rows of its servers
    """

    spec: EnvironmentSpec
    carrier: Carrier[Any]
    recipe: Recipe
    server_types: Mapping[ServerKind, ServerType]

    @cached_property
    def early_servers(self) -> tuple[ServerSpec, ...]:
        """The servers that run from the start."""
        types = self.server_types
        return tuple(s for s in self.spec.servers if types[s.kind].starts_with_environment)


def resolve(spec: EnvironmentSpec) -> Blueprint:
    """Look up what the names in a spec stand for, and whether it all goes together.

    :raises UsageError: it does not, or a name stands for nothing
    """
    try:
        blueprint = Blueprint(
            spec,
            carrier(spec.carrier),
            read_recipe(spec.image),
            {server.kind: server_type(server.kind) for server in spec.servers},
        )
        _check_servers(blueprint)
        _check_carrier(blueprint)
    except UsageError as e:
        raise UsageError(f"environment {spec.name}: {e.message}", hint=e.hint) from e
    return blueprint


def _check_servers(blueprint: Blueprint) -> None:
    spec = blueprint.spec
    for server in spec.servers:
        needs = blueprint.server_types[server.kind].needs_machine_stack
        if needs and spec.host(server.host).stack is not Stack.MACHINE:
            raise UsageError(f'servers: {server.kind} needs a host with stack = "machine"')


def _check_carrier(blueprint: Blueprint) -> None:
    """Refuse what only a kernel of a machine's own, or only this computer's, can be."""
    spec = blueprint.spec
    if spec.kernel.config and not blueprint.carrier.builds_kernel:
        raise UsageError(
            f"kernel: carrier {spec.carrier} takes no config; carrier uml, whose kernel is built"
            " here, does"
        )
    if blueprint.carrier.own_kernel:
        if spec.driver.origin is DriverOrigin.INSTALLED:
            raise UsageError("driver: origin installed needs carrier local")
        return
    if len(spec.machines) > 1:
        raise UsageError(f"hosts: carrier {spec.carrier} has one machine, this computer")
    if spec.machine.kernel_options:
        raise UsageError(
            f"machine: carrier {spec.carrier} runs on a kernel that has its options already"
        )
