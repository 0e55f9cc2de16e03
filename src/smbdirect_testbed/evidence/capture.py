"""The wire: all packets of every link captured for the whole run, cut into one file a scenario.

tcpdump runs in the client's host, and the machine's agent carries what it writes into the shared
directory. A marker (a datagram to the discard port) goes through every link at each border between
scenarios: packets between two markers belong to one scenario. Starting tcpdump for each
scenario would cost seconds and lose the first packets.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from smbdirect_testbed.config.spec import Role, Transport
from smbdirect_testbed.evidence import pcap
from smbdirect_testbed.evidence.counters import Counters
from smbdirect_testbed.evidence.frames import (
    Direction,
    IwarpConnections,
    Kind,
    Traffic,
    count,
    objection,
)
from smbdirect_testbed.evidence.pcap import GrowingPcap, Record
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.wait import wait_until
from smbdirect_testbed.machine.host import Host

_MARKER = b"smbdirect-testbed marker "
_MARKER_WITHIN = 128
"""Bytes of a frame among which a marker is, if it is one: all headers, and those of an error."""
_MARKER_TIMEOUT = 90.0
"""Seconds; after a copy of 20 MiB in an emulated machine on a busy computer it can take 20."""
_LOOK = 1.0
"""Seconds after which a wait for a marker looks whether tcpdump lives."""
_LARGEST_SLICE = 256 << 20
"""Bytes of frames kept for one scenario's file; what comes later is counted only."""

_PAUSE = {"uml": 0.005}
"""Seconds between small writes where they cost little."""
_LONG_PAUSE = 0.1
_RING = {"uml": 32768}
"""KiB of tcpdump's ring where tcpdump keeps up and no template holds a cleared ring."""
_LARGE_RING = 98304
"""Seconds to be cleared by an emulated machine: a template holds it cleared, and a clone has only
what it uses of it."""


class TransportNotProven(AssertionError):
    """SMB went another way than a scenario said, or nothing shows which way it went.

    ::

        smbclient.run("ls", transports=[Transport.TCP])
        with pytest.raises(TransportNotProven, match="SMB went over TCP"):
            wire.expect(Transport.SMBDIRECT)
    """


@dataclass(frozen=True)
class Moment:
    """The state of the wire at one moment.

    ::

        begin: Moment = wire.now()
        smbclient.run("ls", transports=[Transport.TCP])
        wire.expect(Transport.TCP, since=begin)

    :param traffic: frames by kind since the capture began
    """

    traffic: Traffic
    counters: Counters


class WireCapture:
    """The capture of a client's links, read as far as the last marker.

    :param addresses: where markers go: the other end of each link
    :param log: tcpdump's messages, after its end
    :param timeout: seconds that a marker may take to come
    """

    def __init__(
        self,
        client: Host,
        addresses: Sequence[IPv4Address],
        file: GrowingPcap,
        log: Path,
        *,
        timeout: float = _MARKER_TIMEOUT,
    ) -> None:
        self._client = client
        self._addresses = [str(address) for address in addresses]
        self._file = file
        self._log = log
        self._timeout = timeout
        self._queue: list[Record] = []
        self._traffic: Traffic = Counter()
        self._iwarp: IwarpConnections = set()
        self._slice: list[Record] = []
        self._slice_size = 0
        self._run = secrets.token_hex(4)
        self._markers = 0

    def moment(self) -> Moment:
        """Read the capture up to now.

        :raises ProvisionError: tcpdump has ended, or the capture does not show the marker in time
        :raises MachineDied: the machine stopped running
        """
        self._markers += 1
        # The point ends the number: marker 1 is no part of marker 10.
        label = f"{_MARKER.decode()}{self._run} {self._markers}."
        counters = self._mark(label)
        # As the agent spells it: on each link another.
        missing = {f"{label} {address}.".encode() for address in self._addresses}
        search = _Search(self._file, self._queue, missing)
        look = time.monotonic() + _LOOK

        def found() -> tuple[list[Record]] | None:
            nonlocal look
            if (records := search.found()) is None and time.monotonic() > look:
                # It may have ended when it had been asked to mark.
                self._client.machine.required_agent().require_capture()
                look += _LOOK
            return records

        records = wait_until(
            found,
            f"a marker in the capture of {self._client.name}",
            timeout=self._timeout,
            interval=0.01,
        )[0]
        self._traffic += count((r.frame for r in records), self._iwarp)
        if self._slice_size < _LARGEST_SLICE:
            self._slice += records
            self._slice_size += sum(len(r.frame) for r in records)
        return Moment(self._traffic.copy(), counters)

    def cut(self, path: Path) -> bool:
        """Write the packets that were read since the last cut to a file.

        :returns: False without packets; then there is no file
        """
        slice, self._slice, self._slice_size = self._slice, [], 0
        if not slice:
            return False
        pcap.write(path, slice)
        return True

    def shows(self, data: bytes) -> bool:
        """Whether one of the packets that were read since the last cut holds some bytes.

        :raises ProvisionError: there were so many packets that not all were kept
        """
        self.moment()
        if any(data in record.frame for record in self._slice):
            return True
        if self._slice_size >= _LARGEST_SLICE:
            raise ProvisionError(
                f"not all packets were kept: there were more than {_LARGEST_SLICE >> 20} MiB"
            )
        return False

    def lost(self) -> int:
        """Packets that the kernel dropped because tcpdump was too slow; known after its end."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return sum(int(n) for n in re.findall(r"^(\d+) packets? dropped by kernel", text, re.M))

    def _mark(self, label: str) -> Counters:
        rdma_links = [e.rdma_device for e in self._client.ends if e.rdma_device]
        counted = self._client.machine.required_agent().mark_capture(
            namespaces_of=self._client.pid,
            label=label,
            addresses=self._addresses,
            rdma_links=rdma_links,
        )
        return Counters.of(counted["rdma"], counted["snmp"], own_stack=bool(self._client.pid))


class _Search:
    """Looks for markers in a capture that grows.

    :param queue: records that were read and belong to no moment yet
    :param missing: the markers
    """

    def __init__(self, file: GrowingPcap, queue: list[Record], missing: set[bytes]) -> None:
        self._file = file
        self._queue = queue
        self._missing = missing

    def found(self) -> tuple[list[Record]] | None:
        """The records before the last marker, taken from the queue; None while one is missing."""
        seen = len(self._queue)
        self._queue += self._file.take()
        for index in range(seen, len(self._queue)):
            beginning = self._queue[index].frame[:_MARKER_WITHIN]
            self._missing -= {marker for marker in self._missing if marker in beginning}
            if not self._missing:
                before = [r for r in self._queue[:index] if not _is_marker(r.frame)]
                del self._queue[: index + 1]
                return (before,)
        return None


def _is_marker(frame: bytes) -> bool:
    # Also padding, and the ICMP error that quotes one.
    return _MARKER in frame[:_MARKER_WITHIN]


def captured_host(hosts: Mapping[str, Host]) -> Host | None:
    """The host whose links are captured: the first client with a link."""
    clients = (h for h in hosts.values() if h.role is Role.CLIENT and h.ends)
    return next(clients, None)


def start_capture(client: Host) -> None:
    """Start capturing; :func:`capturing` goes on with it. Harmless when repeated.

    In a machine that becomes a template, this serves all its clones.

    :raises ProvisionError: tcpdump did not start
    """
    accelerator = client.machine.accelerator
    client.machine.required_agent().start_capture(
        namespaces_of=client.pid,
        devices=[end.device for end in client.ends],
        file=client.machine.shared.path_there(_file(client)),
        ring=_RING.get(accelerator, _LARGE_RING),
        pause=_PAUSE.get(accelerator, _LONG_PAUSE),
    )


@contextmanager
def capturing(client: Host, hosts: Mapping[str, Host], log: Path) -> Iterator[WireCapture]:
    """Capture all links of a client while the context lasts.

    :param hosts: the hosts of the environment, by name
    :param log: gets tcpdump's messages
    :raises ProvisionError: tcpdump did not start
    """
    addresses = [
        next(e for e in hosts[end.peer].ends if e.ipv4.network == end.ipv4.network).ipv4.ip
        for end in client.ends
    ]
    file = _file(client)
    client.machine.shared.files.write(file.name, b"")
    start_capture(client)
    try:
        yield WireCapture(client, addresses, GrowingPcap(file), log)
    finally:
        if not client.machine.death():
            log.write_text(client.machine.required_agent().end_capture())


def _file(client: Host) -> Path:
    return client.machine.shared.here / "capture.pcap"


@dataclass
class Wire:
    """What went over the wire during one scenario.

    ::

        smbclient.run("ls", transports=[Transport.SMBDIRECT])
        wire.expect(Transport.SMBDIRECT)

    :param begin: the moment at which it began
    :param proofs: what :meth:`expect` found, for the results
    """

    capture: WireCapture
    begin: Moment
    proofs: list[dict[str, object]] = field(default_factory=list)

    def now(self) -> Moment:
        """This moment, for the ``since`` of a later :meth:`expect`."""
        return self.capture.moment()

    def shows(self, data: bytes) -> bool:
        """Whether a packet of this scenario holds some bytes, as they are::

            assert not wire.shows(b"what is in the file")

        :raises ProvisionError: there were so many packets that not all were kept
        """
        return self.capture.shows(data)

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
