"""What goes over one host's links: captured by tcpdump, and marked.

All its links are in one capture, as Linux's "any" device gives them (LINUX_SLL2): one program to
start, one ring to hold in memory, and one order of all packets.
"""

from __future__ import annotations

import _socket as socket
import _thread
import fcntl
import mmap
import os
import time

from smbdirect_testbed.agent import kernel
from smbdirect_testbed.agent.cheap_imports import partial, signal
from smbdirect_testbed.agent.commands import protect, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smbdirect_testbed.agent.namespaces import Namespaces
    from smbdirect_testbed.agent.requests import Counted

_SNAP_LENGTH = 4400
"""Every RoCEv2 packet is whole (their MTU is 4096 at most, and tshark calls cut ones malformed); of
TCP's super-frames of 64 KiB the beginning is enough: that is less to carry, and libpcap makes as
many slots of its ring as the largest packet allows."""
_PRIORITY = -10
_PIPE_SIZE = 1 << 20
_F_SETPIPE_SZ = 1031
_PIECE = 480 << 10
"""Bytes written at once: as many as one message of 9p carries."""
_FILE_INTERVAL = 0.05
"""Seconds between looks for the file that is to be written."""
_LOOPBACK = 1
"""The interface's index in every network namespace."""
_DISCARD_PORT = 9
_PADDING = bytes(1000)
_PADDINGS = 5
"""Datagrams after a marker, which drive it out of tcpdump's buffer of 4 KiB."""
_COUNTERS = "/sys/class/infiniband/{}/ports/1/hw_counters"


class Capture:
    """Captures one host's links. A second capture begins only after the first has ended.

    :param namespaces: how the host's namespaces are entered
    """

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        self._tcpdump = 0
        self._said = -1
        self._pumping = _thread.allocate_lock()

    def start_capture(
        self, namespaces_of: int, devices: list[str], file: str, ring: int, pause: float
    ) -> None:
        """Capture what goes over interfaces from now on, unless that is done already.

        They need not be there yet.

        :param namespaces_of: the process in whose namespaces they are, with no others; 0 for
            this one's
        :param file: gets it, as soon as it is there: a template has no shared directory
        :param ring: KiB for packets that tcpdump has not read yet
        :param pause: seconds between small writes
        """
        if self._tcpdump:
            if not self._is_dead():
                return
            self.end_capture()
        wanted = f"not ifindex {_LOOPBACK}" if namespaces_of else _filter(devices)
        # Immediately, because otherwise a packet could wait in the ring for a second. But tcpdump
        # may write once for several packets (no -U): each write costs, and a machine is slow.
        argv = ["tcpdump", "-i", "any", "-y", "LINUX_SLL2", "-s", str(_SNAP_LENGTH)]
        argv += ["-B", str(ring), "--immediate-mode", "-Z", "root", "-w", "-", wanted]
        self._said = os.memfd_create("said")
        pipe, its = os.pipe()
        fcntl.fcntl(its, _F_SETPIPE_SZ, _PIPE_SIZE)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            files = (null, its, self._said)
            self._tcpdump = self._namespaces.call(namespaces_of, partial(spawn, argv, files))
        finally:
            os.close(null)
            os.close(its)
        _favour(self._tcpdump)
        self._pumping.acquire()
        _thread.start_new_thread(self._pump, (pipe, file, pause))
        kernel.wait(lambda: "listening on" in self._log() or self._is_dead(), "tcpdump to listen")
        self.require_capture()

    def mark_capture(
        self, namespaces_of: int, label: str, addresses: list[str], rdma_links: list[str]
    ) -> Counted:
        """Send a marker to each address, by a link of its own, and read the host's counters.

        :returns: ``rdma``, packets sent and received by each RDMA link that counts them; ``snmp``,
            the text of ``/proc/net/snmp``
        """
        self.require_capture()
        snmp = self._namespaces.call(namespaces_of, partial(_mark_and_count, label, addresses))
        return {"rdma": {n: c for n in rdma_links if (c := _port_counters(n))}, "snmp": snmp}

    def end_capture(self) -> str:
        """End the capture, if there is one; return what tcpdump said when all is in the file."""
        if not self._tcpdump:
            return ""
        os.kill(self._tcpdump, signal.SIGTERM)
        kernel.wait(self._is_dead, "tcpdump to end")
        os.waitpid(self._tcpdump, 0)
        self._tcpdump = 0
        kernel.wait(lambda: not self._pumping.locked(), "the capture to be written")
        log = self._log()
        os.close(self._said)
        return log

    def _is_dead(self) -> bool:
        # Its status stays there to be asked for.
        return bool(os.waitid(os.P_PID, self._tcpdump, os.WEXITED | os.WNOHANG | os.WNOWAIT))

    def require_capture(self) -> None:
        """Raise :class:`OSError` if there is no capture, or no longer."""
        if not self._tcpdump or self._is_dead():
            raise OSError(f"tcpdump has ended: {self._log().strip()}")

    def _log(self) -> str:
        size = os.fstat(self._said).st_size
        return os.pread(self._said, size, 0).decode(errors="replace")

    def _pump(self, pipe: int, path: str, pause: float) -> None:
        """Carry what tcpdump writes into a file.

        In an emulated machine a write to the shared directory costs as much time as 10 KiB of it,
        so there are few. In User Mode Linux it costs little, but is seen outside only once it is
        written back: the advice has that happen at once.
        """
        # Mapped once, because page faults are slow in an emulated machine.
        buffer = memoryview(mmap.mmap(-1, _PIECE))
        try:
            while not os.path.exists(path):
                if self._is_dead():
                    return
                # Without a deadline: in a template it comes with a clone, which may be days later.
                time.sleep(_FILE_INTERVAL)
            file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                while size := os.readv(pipe, [buffer]):
                    done = 0
                    while done < size:
                        done += os.write(file, buffer[done:size])
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                    if size < _PIECE // 2:
                        # Nothing is waited for: what comes meanwhile makes one larger write.
                        time.sleep(pause)
            finally:
                os.close(file)
        finally:
            os.close(pipe)
            self._pumping.release()


def _filter(devices: list[str]) -> str:
    files = [f"/sys/class/net/{device}/ifindex" for device in devices]
    kernel.wait(lambda: all(map(os.path.exists, files)), "the interfaces to capture")
    return " or ".join(f"ifindex {kernel.read(file).strip()}" for file in files)


def _favour(pid: int) -> None:
    """Every packet counts; and out of memory, the kernel should end what a scenario started."""
    protect(pid)
    try:
        os.setpriority(os.PRIO_PROCESS, pid, _PRIORITY)
    except OSError:
        # Not permitted on a computer that others use, too.
        return


def _mark_and_count(label: str, addresses: list[str]) -> str:
    for address in addresses:
        marker = f"{label} {address}.".encode()
        _send(marker, address)
        # Each is one, too: a link may lose packets.
        for _ in range(_PADDINGS):
            _send(marker + _PADDING, address)
    return kernel.read("/proc/thread-self/net/snmp")


def _send(data: bytes, address: str) -> None:
    # By a socket of its own: an ICMP error in answer to it fails the next on the same socket.
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sender.sendto(data, (address, _DISCARD_PORT))
    finally:
        sender.close()


def _port_counters(rdma_link: str) -> list[int] | None:
    # They are only in the sysfs of the machine's own stack, which this process has.
    counters = _COUNTERS.format(rdma_link)
    try:
        return [int(kernel.read(f"{counters}/{name}")) for name in ("sent_pkts", "rcvd_pkts")]
    except OSError:
        return None
