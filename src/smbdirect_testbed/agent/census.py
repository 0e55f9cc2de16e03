"""What there is in a machine that scenarios may leave behind."""

from __future__ import annotations

import os

from smbdirect_testbed.agent import kernel, nldev
from smbdirect_testbed.agent.cheap_imports import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smbdirect_testbed.agent.namespaces import Namespaces

_OF_SERVERS = ("smbd", "rpcd_", "samba-", "nmbd", "winbindd", "ksmbd", "sshd")
"""Beginnings of names of processes that servers start and end when they like."""
_NAMES_OF_NAMESPACES = "/run/netns"
"""Mounted by the first ``ip netns add``, for good; each namespace is another mount below."""
_KTHREADD = 2


def take(namespaces: Namespaces, holders: dict[str, int], modules: list[str]) -> dict[str, int]:
    """Count what there is, by what it is.

    :param holders: by a host's name, the process that holds its namespaces; 0 for the machine's own
    :param modules: kernel modules whose users are counted
    """
    found: dict[str, int] = {}
    for host, pid in holders.items():
        for name in namespaces.call(pid, partial(os.listdir, "/sys/class/net")):
            _add(found, f"interface {name} of host {host}")
        for line in namespaces.call(pid, partial(kernel.read, "/proc/thread-self/mounts")).split(
            "\n"
        ):
            if line and line.split()[1] != _NAMES_OF_NAMESPACES:
                _add(found, f"mount {line.split()[1]} of host {host}")
    for device, kind, number in nldev.resources():
        _add(found, f"{kind} of RDMA link {device}", number)
    for name in modules:
        path = f"/sys/module/{name}/refcnt"
        # Not that of one that is part of the kernel.
        if os.path.exists(path):
            _add(found, f"reference to module {name}", int(kernel.read(path)))
    for name in _processes():
        _add(found, f"process {name}")
    return found


def _add(found: dict[str, int], what: str, number: int = 1) -> None:
    if number:
        found[what] = found.get(what, 0) + number


def _processes() -> list[str]:
    """Names of programs that run, but for the kernel's threads and those of servers."""
    names = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            text = kernel.read(f"/proc/{entry}/stat")
        except OSError:
            continue  # it has ended
        name = text[text.index("(") + 1 : text.rindex(")")]
        state, parent = text[text.rindex(")") + 2 :].split()[:2]
        if _KTHREADD in (int(parent), int(entry)) or state == "Z":
            continue
        if not name.startswith(_OF_SERVERS):
            names.append(name)
    return names
