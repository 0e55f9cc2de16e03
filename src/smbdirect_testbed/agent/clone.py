"""A machine that becomes a template, and clones that become machines of their own."""

from __future__ import annotations

import os
import time

from smbdirect_testbed.agent import kernel, rtnetlink
from smbdirect_testbed.agent.cheap_imports import partial, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_SHARE = "trans=virtio,version=9p2000.L,msize=512000,cache=none,access=any"
_MOUNTS = (
    ("testbed", "/testbed", "9p", 0, _SHARE),
    ("/dev/vdb", "/srv", "ext4", kernel.MS_NOATIME, None),
)
"""What belongs to one machine alone and is no part of a template: as the image's init mounts it."""

_SSH_KEYS = "/run/testbed-ssh"
_SSHD_PID = "/run/sshd.pid"


class Clone:
    """Makes a machine ready to be saved as a template, and wakes up a clone of that template."""

    def __init__(self) -> None:
        self._sshd = 0

    def freeze(self, holders: Iterable[int]) -> None:
        """Release what belongs to this machine alone, so that it can become a template.

        :param holders: the processes whose mount namespaces are its hosts'
        """
        for pid in holders:
            kernel.in_mounts_of(pid, _unmount_all)
        _unmount_all()
        self._sshd = int(kernel.read(_SSHD_PID))
        os.unlink(_SSHD_PID)

    def thaw(
        self,
        holders: Iterable[int],
        time_now: float,
        entropy: str,
        mac: str,
        keys: dict[str, str],
    ) -> None:
        """Become a machine of its own, after having been a copy of a template.

        :param time_now: seconds since the epoch
        :param entropy: random bytes, in hexadecimal
        :param mac: the address for the interface that ssh comes by
        :param keys: files for sshd
        """
        time.clock_settime(time.CLOCK_REALTIME, time_now)
        kernel.reseed(bytes.fromhex(entropy))
        for name, content in keys.items():
            kernel.write(f"{_SSH_KEYS}/{name}", content)
            os.chmod(f"{_SSH_KEYS}/{name}", 0o600)
        # sshd restarts itself and then reads the host key.
        os.kill(self._sshd, signal.SIGHUP)
        # Otherwise the network behind it may know the template's address for a while, and not ours.
        kernel.write_sysctls({"net/ipv4/conf/eth0/arp_notify": "1"})
        rtnetlink.set_mac("eth0", mac)
        for source, target, kind, flags, data in _MOUNTS:
            kernel.mount(source, target, kind, flags, data)
        for pid in holders:
            trees = {target: kernel.open_tree(target) for _, target, _, _, _ in _MOUNTS}
            kernel.in_mounts_of(pid, partial(_place_trees, trees))
            for tree in trees.values():
                os.close(tree)


def _unmount_all() -> None:
    for _, target, _, _, _ in reversed(_MOUNTS):
        kernel.umount(target)


def _place_trees(trees: dict[str, int]) -> None:
    for target, tree in trees.items():
        kernel.place_tree(tree, target)
