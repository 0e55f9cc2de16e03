"""The wire: whole packets of every link captured for the whole run, cut into one file a scenario.

tcpdump runs in the client's host, one process a link, and writes into the shared directory. A
marker (a datagram to the discard port) goes through every link at each border between scenarios:
what lies between two markers belongs to one scenario. To start tcpdump anew for each scenario
would cost seconds and lose the first packets.
"""

from __future__ import annotations

import heapq
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from subprocess import Popen

from smbdirect_testbed import pcap
from smbdirect_testbed.counters import COUNTERS_SCRIPT, Counters
from smbdirect_testbed.errors import ProvisionError
from smbdirect_testbed.host import Host
from smbdirect_testbed.pcap import GrowingPcap, Record
from smbdirect_testbed.spec import Transport
from smbdirect_testbed.traffic import Direction, Kind, Traffic, count, objection
from smbdirect_testbed.wait import wait_until

_MARKER = b"smbdirect-testbed marker "
_LONGEST_MARKER_FRAME = 256
_MARKER_TIMEOUT = 20.0
_LARGEST_SLICE = 256 << 20
"""Bytes of frames kept for one scenario's file; what comes later is counted only."""

# cat takes what tcpdump wrote meanwhile in one piece: under load the shared directory sees writes
# of up to 64 KiB instead of one a packet, and when idle every packet gets there at once. exec
# keeps the process id, so that the signal that ends the capture reaches tcpdump.
_TCPDUMP = 'exec tcpdump -i "$0" -U -s 0 -B 65536 --immediate-mode -Z root -w - > >(exec cat >"$1")'

_MARK = (
    """
label=$1 devices=$2; shift 2
for address in "$@"; do printf %s "$label" >"/dev/udp/$address/9" || exit 1; done
"""
    + COUNTERS_SCRIPT
)


class TransportNotProven(AssertionError):
    """SMB went another way than a scenario said, or nothing shows which way it went."""


@dataclass(frozen=True)
class Moment:
    """The state of the wire at one moment.

    :param traffic: frames by kind since the capture began
    """

    traffic: Traffic
    counters: Counters


@dataclass
class LinkCapture:
    """The capture of one link, read as far as the last marker.

    :param mac: the address of the client's interface
    :param address: where markers go: the host at the other end
    :param log: what tcpdump says
    """

    device: str
    mac: bytes
    address: IPv4Address
    file: GrowingPcap
    log: Path
    _queue: list[Record] = field(default_factory=list)

    def up_to(self, marker: bytes) -> list[Record] | None:
        """The records before a marker; None while it has not come."""
        seen = len(self._queue)
        self._queue += self.file.take()
        for index in range(seen, len(self._queue)):
            frame = self._queue[index].frame
            if len(frame) <= _LONGEST_MARKER_FRAME and marker in frame:
                before, self._queue = self._queue[:index], self._queue[index + 1 :]
                return [r for r in before if not _is_marker(r.frame)]
        return None

    def lost(self) -> int:
        """Packets that the kernel dropped because tcpdump was too slow; known after its end."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return sum(int(n) for n in re.findall(r"^(\d+) packets? dropped by kernel", text, re.M))


def _is_marker(frame: bytes) -> bool:
    # Also the ICMP error that quotes one.
    return len(frame) <= _LONGEST_MARKER_FRAME and _MARKER in frame


class WireCapture:
    """The captures of a client's links.

    :param timeout: seconds that a marker may take to come
    """

    def __init__(
        self, client: Host, links: list[LinkCapture], *, timeout: float = _MARKER_TIMEOUT
    ) -> None:
        self.links = links
        self._client = client
        self._timeout = timeout
        self._traffic: Traffic = Counter()
        self._slice: list[list[Record]] = []
        self._slice_size = 0
        self._run = secrets.token_hex(4)
        self._markers = 0

    def moment(self) -> Moment:
        """Read the capture as far as now.

        :raises ProvisionError: the capture does not show the marker in time
        :raises MachineDied: the machine stopped running
        """
        self._markers += 1
        # The point ends the number: marker 1 is no part of marker 10.
        marker = _MARKER + f"{self._run} {self._markers}.".encode()
        devices = " ".join(e.rdma_device for e in self._client.ends if e.rdma_device)
        addresses = [str(link.address) for link in self.links]
        script = ["bash", "-c", _MARK, "mark", marker.decode(), devices, *addresses]
        counters = Counters.parse(self._client.run(script).stdout)
        for link in self.links:
            records = wait_until(
                lambda link=link: _found(link.up_to(marker)),  # type: ignore[misc]
                f"a marker in the capture of {self._client.name}'s {link.device}",
                timeout=self._timeout,
                interval=0.01,
            )[0]
            self._traffic += count((r.frame for r in records), link.mac)
            if self._slice_size < _LARGEST_SLICE:
                self._slice.append(records)
                self._slice_size += sum(len(r.frame) for r in records)
        return Moment(self._traffic.copy(), counters)

    def cut(self, path: Path) -> bool:
        """Write what came since the last cut, as far as it was read, to a file.

        :returns: False when nothing came; there is no file then
        """
        slice, self._slice, self._slice_size = self._slice, [], 0
        if not any(slice):
            return False
        # Each link's records are in order of time, and so are the pieces of one link.
        pcap.write(path, heapq.merge(*slice, key=lambda r: r.time))
        return True


def _found(records: list[Record] | None) -> tuple[list[Record]] | None:
    return None if records is None else (records,)


@contextmanager
def capturing(client: Host, hosts: Mapping[str, Host], logs: Path) -> Iterator[WireCapture]:
    """Capture all links of a client while the context lasts.

    :param hosts: the hosts of the environment, by name
    :param logs: a directory for what tcpdump says
    :raises ProvisionError: tcpdump did not start
    """
    shared = client.machine.shared
    links: list[LinkCapture] = []
    with ExitStack() as stack:
        running: list[Popen[bytes]] = []
        for end in client.ends:
            file = shared.here / f"capture-{end.device}.pcap"
            file.unlink(missing_ok=True)
            log = logs / f"tcpdump-{end.device}.log"
            command = ["bash", "-c", _TCPDUMP, end.device, str(shared.path_there(file))]
            running.append(stack.enter_context(client.background(command, log)))
            peer = next(e for e in hosts[end.peer].ends if e.ipv4.network == end.ipv4.network)
            links.append(
                LinkCapture(
                    end.device,
                    bytes.fromhex(end.mac.replace(":", "")),
                    peer.ipv4.ip,
                    GrowingPcap(file),
                    log,
                )
            )
        for link, proc in zip(links, running, strict=True):
            _wait_for(client, link, proc)
        yield WireCapture(client, links)


def _wait_for(client: Host, link: LinkCapture, proc: Popen[bytes]) -> None:
    def begun() -> bool:
        if proc.poll() is not None:
            client.machine.raise_if_dead()
            raise ProvisionError(
                f"tcpdump on {client.name}'s {link.device} ended with status {proc.returncode}",
                detail=link.log.read_text(errors="replace")[-2000:],
            )
        return link.file.path.exists() and link.file.path.stat().st_size > 0

    wait_until(begun, f"tcpdump on {client.name}'s {link.device} to begin", timeout=30)


@dataclass
class Wire:
    """What went over the wire during one scenario.

    :param begin: the moment at which it began
    :param proofs: what :meth:`expect` found, for the results
    """

    capture: WireCapture
    begin: Moment
    proofs: list[dict[str, object]] = field(default_factory=list)

    def now(self) -> Moment:
        """This moment, for the ``since`` of a later :meth:`expect`."""
        return self.capture.moment()

    def expect(self, transport: Transport, *, since: Moment | None = None) -> Traffic:
        """Prove that all SMB went over one transport: from the capture and from counters.

        SMB-Direct means RoCEv2 sends in both directions and not one TCP segment on ports 139,
        445 and 5445; tcp and nbt mean segments on their port alone and no RoCEv2 packet of a
        connection.

        :param since: the beginning of the scenario, unless another moment is named
        :returns: the frames counted
        :raises TransportNotProven: it went another way, in plain words
        """
        begin, now = since or self.begin, self.now()
        seen = now.traffic - begin.traffic
        growth = now.counters.since(begin.counters)
        wrong = objection(seen, transport) or growth.objection(transport, seen)
        self.proofs.append(
            {
                "transport": transport.value,
                "proven": wrong is None,
                "objection": wrong,
                "captured": as_json(seen),
                "rdma_port_counters": growth.rdma,
                "tcp_segments_sent": growth.tcp_sent,
            }
        )
        if wrong:
            raise TransportNotProven(wrong)
        return seen


def as_json(seen: Traffic) -> dict[str, dict[str, int]]:
    """Frames by kind and direction."""
    kinds = [kind for kind in Kind if any(seen[kind, d] for d in Direction)]
    return {kind.value: {d.value: seen[kind, d] for d in Direction} for kind in kinds}
