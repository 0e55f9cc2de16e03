"""What scenarios say of themselves by markers: what they need, and when they are worth it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from smbdirect_testbed.config.spec import EnvironmentSpec, RdmaType, Role, ServerKind, Transport
from smbdirect_testbed.smb.servers import SERVERS, server_names


@dataclass(frozen=True)
class Marker:
    """A marker that scenarios may have.

    ::

        Marker("slow", "takes long", "@pytest.mark.slow")

    :param signature: its name, and its arguments if it has any
    :param meaning: one line
    :param example: one line of a scenario's file
    """

    signature: str
    meaning: str
    example: str

    @property
    def line(self) -> str:
        """The marker as pytest registers it."""
        return f"{self.signature}: {self.meaning}"


MARKERS = (
    Marker(
        "needs(*features)",
        "skip the scenario where the environment lacks one of: a server (smbd, ksmbd), a "
        "transport (tcp, nbt, smbdirect) of the servers that are named or that fixtures provide, "
        "an RDMA type (rxe, siw), a role (server, client, monitor)",
        '@pytest.mark.needs("ksmbd", "smbdirect")',
    ),
    Marker(
        "thorough",
        "leave the scenario out of a run, unless that is a run --thorough",
        "@pytest.mark.thorough",
    ),
    Marker(
        "early",
        "the scenario may run while servers start: it neither needs nor notices them",
        "@pytest.mark.early",
    ),
    Marker(
        "stands_on(*files)",
        "other scenario files, which run first: the scenario is not run when one of them is red",
        '@pytest.mark.stands_on("test_socket.py")',
    ),
    Marker(
        "deadline(seconds)",
        "the scenario may take so long; without it, that follows from how long it usually takes",
        "@pytest.mark.deadline(900)",
    ),
    Marker(
        "known_splat(function, reason, sometimes=False)",
        "the kernel is known to complain about itself in a function: a known failure, and a "
        "failure if it does not, unless it does so only sometimes",
        '@pytest.mark.known_splat("smbdirect_connection_wait", "it waits for nothing")',
    ),
)
OLD_NAMES = {"kernel_mistake": "known_splat"}
"""Markers that were renamed: the old name, and the new one. Both work."""

_TRANSPORTS = {t.value for t in Transport}
_NO_SERVERS = {e.value for kind in (Transport, RdmaType, Role) for e in kind}
"""Features that are no servers."""


def lines() -> list[str]:
    """All markers as pytest registers them."""
    signatures = {m.signature.partition("(")[0]: m.signature for m in MARKERS}
    old = [
        f"{signatures[new].replace(new, name)}: the old name of {new}"
        for name, new in OLD_NAMES.items()
    ]
    return [*(m.line for m in MARKERS), *old]


def is_thorough(item: pytest.Item) -> bool:
    """Whether a scenario is for thorough runs only."""
    return item.get_closest_marker("thorough") is not None


def is_early(item: pytest.Item) -> bool:
    """Whether a scenario may run while servers start."""
    return item.get_closest_marker("early") is not None


def check_markers(items: list[pytest.Item]) -> None:
    """Raise :class:`pytest.UsageError` for a feature that cannot be: a typo, mostly."""
    for item in items:
        for feature in _needed(item):
            if feature not in _NO_SERVERS and feature not in SERVERS:
                # Those of other packages are looked for when it must be.
                known = {*_NO_SERVERS, *server_names()}
                if feature not in known:
                    raise pytest.UsageError(
                        f"{item.nodeid}: needs({feature!r}): there is no such feature "
                        f"(there are {', '.join(sorted(known))})"
                    )
            if feature in _TRANSPORTS and not _servers_used(item):
                raise pytest.UsageError(
                    f"{item.nodeid}: needs({feature!r}): of which server? Name it, too: "
                    f'needs("{ServerKind.SMBD}", {feature!r})'
                )


def lacking(item: pytest.Item, spec: EnvironmentSpec) -> str | None:
    """Why an environment is not enough for a scenario; None if it is.

    What a scenario needs is what its marker ``needs`` says, and the transports among its
    parameters, which the servers that it uses must offer.
    """
    offered = {str(s.kind) for s in spec.servers} | {str(h.role) for h in spec.hosts}
    offered |= {str(end.rdma) for link in spec.links for end in link.ends if end.rdma}
    missing = [f for f in _needed(item) if f not in offered and f not in _TRANSPORTS]
    if missing:
        return f"environment {spec.name} has no {' and no '.join(missing)}"
    wanted = dict.fromkeys([*_transports_needed(item), *_transports_as_parameters(item)])
    for server in spec.servers:
        if server.kind in _servers_used(item):
            absent = [str(t) for t in wanted if t not in server.transports]
            if absent:
                return (
                    f"{server.kind} in environment {spec.name} does not offer "
                    f"{' and '.join(absent)}"
                )
    return None


def _needed(item: pytest.Item) -> list[str]:
    return [str(f) for marker in item.iter_markers("needs") for f in marker.args]


def _servers_used(item: pytest.Item) -> set[ServerKind]:
    """Servers that a scenario names, or has from a fixture of that name."""
    named = {ServerKind(name) for name in _needed(item) if name not in _NO_SERVERS}
    return named | {kind for kind in SERVERS if kind in getattr(item, "fixturenames", ())}


def _transports_needed(item: pytest.Item) -> list[Transport]:
    return [Transport(f) for f in _needed(item) if f in _TRANSPORTS]


def _transports_as_parameters(item: pytest.Item) -> Iterator[Transport]:
    """Transports among the values that a scenario is parametrized with, alone or in lists."""
    callspec = getattr(item, "callspec", None)
    for value in callspec.params.values() if callspec else ():
        values = value if isinstance(value, list | tuple) else [value]
        yield from (v for v in values if isinstance(v, Transport))
