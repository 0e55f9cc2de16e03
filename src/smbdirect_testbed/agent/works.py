"""What is done for requests by one thread, and needs most of the agent's modules."""

from __future__ import annotations

from smbdirect_testbed.agent import census
from smbdirect_testbed.agent.capture import Capture
from smbdirect_testbed.agent.cheap_imports import partial
from smbdirect_testbed.agent.clone import Clone
from smbdirect_testbed.agent.hosts import Hosts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from smbdirect_testbed.agent.namespaces import Namespaces


class Works:
    """The works that can be asked for; what was made stays, also when nobody asks any more."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._hosts = Hosts(namespaces)
        self._clone = Clone()
        self._made: dict[str, Any] = {}
        """What was made, by the request that had it made: asked for once more, it is there."""
        capture = Capture(namespaces)
        hosts = self._hosts
        self.in_order: dict[str, Callable[..., Any]] = {
            "make_hosts": partial(self._once, hosts.make_hosts),
            "make_links": partial(self._once, hosts.make_links),
            "place_machine_link": partial(self._once, hosts.place_machine_link),
            "make_rdma_links": partial(self._once, hosts.make_rdma_links),
            "unmake": self._unmake,
            "mark_capture": capture.mark_capture,
            "require_capture": capture.require_capture,
            "end_capture": capture.end_capture,
            "take_census": partial(census.take, namespaces),
            "freeze": self._freeze,
            "thaw": self._thaw,
        }
        """To be done one after the other."""
        self.independent: dict[str, Callable[..., Any]] = {"start_capture": capture.start_capture}
        """May be done at the same time as everything else, with which it has nothing to do."""

    def _once(self, make: Callable[..., Any], **arguments: Any) -> Any:
        key = ascii([make.__name__, arguments])
        if key not in self._made:
            self._made[key] = make(**arguments)
        return self._made[key]

    def _unmake(self) -> None:
        self._hosts.unmake()
        self._made.clear()

    def _freeze(self) -> None:
        self._clone.freeze(self._holders())

    def _thaw(self, **arguments: Any) -> None:
        self._clone.thaw(self._holders(), **arguments)

    def _holders(self) -> list[int]:
        return [pid for pid in self._hosts.holders.values() if pid]
