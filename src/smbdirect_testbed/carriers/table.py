"""The carriers there are: one row each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smbdirect_testbed.carriers.carrier import Carrier
from smbdirect_testbed.config.kinds import CarrierKind
from smbdirect_testbed.lib.errors import UsageError
from smbdirect_testbed.lib.extensions import extension, extension_names

GROUP = "smbdirect_testbed.carriers"
"""The entry points of other packages, each a subclass of :class:`.Carrier`."""


def _vm() -> Carrier[Any]:
    from smbdirect_testbed.carriers.vm.carrier import VmCarrier

    return VmCarrier()


def _uml() -> Carrier[Any]:
    from smbdirect_testbed.carriers.uml.carrier import UmlCarrier

    return UmlCarrier()


def _local() -> Carrier[Any]:
    from smbdirect_testbed.carriers.local.carrier import LocalCarrier

    return LocalCarrier()


# A carrier is imported when it is needed: each takes its time, and a run uses one.
CARRIERS: dict[CarrierKind, Callable[[], Carrier[Any]]] = {
    CarrierKind.VM: _vm,
    CarrierKind.UML: _uml,
    CarrierKind.LOCAL: _local,
}
_in_use: dict[CarrierKind, Carrier[Any]] = {}


def carrier(kind: CarrierKind) -> Carrier[Any]:
    """The carrier of a name.

    :raises UsageError: there is none, or it cannot be imported
    """
    if kind not in _in_use:
        make = CARRIERS.get(kind) or extension(GROUP, kind)
        if not callable(make):
            known = ", ".join(sorted({*CARRIERS, *extension_names(GROUP)}))
            raise UsageError(f"there is no carrier {kind.value!r}", hint=f"there are: {known}")
        made = make()
        if not isinstance(made, Carrier):
            raise UsageError(f"carrier {kind}: {make!r} makes no Carrier")
        _in_use[kind] = made
    return _in_use[kind]


def known_carriers() -> list[Carrier[Any]]:
    """All of this package, and those of others that were asked for by now."""
    for kind in CARRIERS:
        carrier(kind)
    return list(_in_use.values())
