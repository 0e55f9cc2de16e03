"""What scenarios say of themselves by markers: what they need, and when they are worth it."""

from __future__ import annotations

import pytest

from smbdirect_testbed.config.spec import EnvironmentSpec, RdmaType, Role, ServerKind

MARKERS = (
    "needs(*features): skip the scenario where the environment lacks one of: "
    "a server (smbd, ksmbd), an RDMA type (rxe, siw), a role (server, client, monitor)",
    "thorough: not part of a run of everything unless that is to be thorough",
    "early: the scenario may run while servers start: they, and what it sees of them, mean nothing "
    "to it",
    "stands_on(*files): other scenario files, which run first; not run when one of them is red",
    "deadline(seconds): it may take so long, and not what follows from how long it usually takes",
    "kernel_mistake(function, reason, sometimes=False): the kernel complains about itself in a "
    "function, as is known; a failure if it does not, unless it does only sometimes",
)

_KNOWN = {e.value for kind in (ServerKind, RdmaType, Role) for e in kind}


def is_thorough(item: pytest.Item) -> bool:
    """Whether a scenario is for thorough runs only."""
    return item.get_closest_marker("thorough") is not None


def is_early(item: pytest.Item) -> bool:
    """Whether a scenario may run while servers start."""
    return item.get_closest_marker("early") is not None


def check_markers(items: list[pytest.Item]) -> None:
    """Raise :class:`pytest.UsageError` for a feature that does not exist: a typo."""
    for item in items:
        for feature in _needed(item):
            if feature not in _KNOWN:
                raise pytest.UsageError(
                    f"{item.nodeid}: needs({feature!r}): there is no such feature "
                    f"(there are {', '.join(sorted(_KNOWN))})"
                )


def lacking(item: pytest.Item, spec: EnvironmentSpec) -> str | None:
    """Why an environment is not enough for a scenario; None if it is."""
    offered = {str(s.kind) for s in spec.servers} | {str(h.role) for h in spec.hosts}
    offered |= {str(end.rdma) for link in spec.links for end in link.ends if end.rdma}
    missing = [feature for feature in _needed(item) if feature not in offered]
    if not missing:
        return None
    return f"environment {spec.name} has no {' and no '.join(missing)}"


def _needed(item: pytest.Item) -> list[str]:
    return [str(f) for marker in item.iter_markers("needs") for f in marker.args]
