"""The wire: all packets of every link captured for the whole run, cut into one file a scenario.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from smbdirect_testbed import pcap
from smbdirect_testbed.counters import COUNTERS_SCRIPT, Counters
from smbdirect_testbed.errors import ProvisionError
from smbdirect_testbed.host import Host
from smbdirect_testbed.pcap import GrowingPcap, Record
from smbdirect_testbed.spec import Role, Transport
from smbdirect_testbed.traffic import Direction, IwarpConnections, Kind, Traffic, count, objection
from smbdirect_testbed.wait import wait_until

_MARKER = b"smbdirect-testbed marker "
_MARKER_WITHIN = 128
"""Bytes of a frame among which a marker is, if it is one: all headers, and those of an error."""
_MARKER_TIMEOUT = 90.0
"""Seconds; after a copy of 20 MiB in an emulated machine on a busy computer it can take 20."""
_LARGEST_SLICE = 256 << 20
"""Bytes of frames kept for one scenario's file; what comes later is counted only."""

# Every packet counts, and an emulated machine is slow. So tcpdump may buffer (no -U), to write once
# for several packets. Every RoCEv2 packet is whole (their MTU is 4096 at most, and tshark calls cut
# ones malformed); of TCP's super-frames of 64 KiB the beginning is enough: that is less to carry,
# and libpcap makes as many slots of its ring as the largest packet allows. Immediate mode, because
# otherwise a packet could wait in the ring for a second. exec keeps the process id. Out of memory,
# the kernel should end what a scenario started; its ring makes tcpdump the largest of all.
_TCPDUMP = """
{ echo -1000 >"/proc/$$/oom_score_adj"; } 2>/dev/null
exec > >(exec python3 -I -S -c "$2" "$1" "$3")
echo "$$ $!" >"/run/capture-$0.pids"
exec nice -n -10 tcpdump -i "$0" -s 4400 -B "$4" --immediate-mode -Z root -w -
"""

# In an emulated machine a write to the shared directory costs as much time as 10 KiB of it, so
# there are few: ten a second until there is much, and as large as one message of 9p. In User Mode
# Linux it costs little, but is seen outside only once it is written back: the advice has that
# happen at once. The buffer is mapped once, because page faults are slow in an emulated machine.
# 1031 is F_SETPIPE_SZ. The file is there when the shared directory is, which a template does not
# have.
_PUMP = """
import fcntl, mmap, os, sys, time
fcntl.fcntl(0, 1031, 1 << 20)
buffer = memoryview(mmap.mmap(-1, 480 << 10))
pause = float(sys.argv[2])
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
with open(0, "rb", buffering=0) as pipe, open(sys.argv[1], "r+b", buffering=0) as file:
    while size := pipe.readinto(buffer):
        done = 0
        while done < size:
            done += file.write(buffer[done:size])
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if size < len(buffer) // 2:
            time.sleep(pause)
"""
_PAUSE = {"uml": 0.005}
"""Seconds between small writes where they cost little."""
_LONG_PAUSE = 0.1
_RING = {"uml": 32768}
"""KiB of tcpdump's ring where it keeps up, since there is nobody to have cleared it beforehand."""
_LARGE_RING = 98304

# Devices and files in turns. The ring of each tcpdump takes 96 MiB, and seconds to be cleared by an
# emulated machine: a template holds it cleared, and a clone has only what it uses of it.
_START = """
tcpdump=$1 pump=$2 pause=$3 ring=$4 pids= logs=; shift 4
while [ $# -gt 0 ]; do
    log=/run/capture-$1.log
    setsid bash -c "$tcpdump" "$1" "$2" "$pump" "$pause" "$ring" </dev/null >"$log" 2>&1 &
    pids="$pids $!" logs="$logs $log"
    shift 2
done
for log in $logs; do
    until grep -q "listening on" "$log"; do
        kill -0 $pids 2>/dev/null || { cat $logs; exit 1; }
        sleep 0.02
    done
done
"""

_ADOPT = """
for device in "$@"; do kill -0 $(cat "/run/capture-$device.pids") || exit; done
"""

# Ends when the pumps have ended, too: then all that was captured is there.
_STOP = """
for device in "$@"; do
    read -r tcpdump pump <"/run/capture-$device.pids"
    kill -TERM "$tcpdump" 2>/dev/null
done
for device in "$@"; do
    read -r tcpdump pump <"/run/capture-$device.pids"
    tries=0
    while kill -0 "$tcpdump" 2>/dev/null || kill -0 "$pump" 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || kill -KILL "$tcpdump" "$pump"
        sleep 0.05
    done
    echo "device $device"
    cat "/run/capture-$device.log"
done
"""

# The padding after a marker drives it out of tcpdump's buffer of 4 KiB. Each datagram has a socket
# of its own, because an ICMP error in answer to one fails the next on the same socket.
_MARK = (
    """
label=$1 devices=$2; shift 2
for address in "$@"; do
    printf %s "$label" >"/dev/udp/$address/9" || exit 1
    for padding in 1 2 3 4 5; do printf "%s %01000d" "$label" 0 >"/dev/udp/$address/9"; done
done
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
            if marker in self._queue[index].frame[:_MARKER_WITHIN]:
                before, self._queue = self._queue[:index], self._queue[index + 1 :]
                return [r for r in before if not _is_marker(r.frame)]
        return None

    def lost(self) -> int:
        """Packets that the kernel dropped because tcpdump was too slow; known after its end."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return sum(int(n) for n in re.findall(r"^(\d+) packets? dropped by kernel", text, re.M))


def _is_marker(frame: bytes) -> bool:
    # Also padding, and the ICMP error that quotes one.
    return _MARKER in frame[:_MARKER_WITHIN]


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
        self._iwarp: IwarpConnections = set()
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
                partial(_found, link, marker),
                f"a marker in the capture of {self._client.name}'s {link.device}",
                timeout=self._timeout,
                interval=0.01,
            )[0]
            self._traffic += count((r.frame for r in records), link.mac, self._iwarp)
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


def _found(link: LinkCapture, marker: bytes) -> tuple[list[Record]] | None:
    records = link.up_to(marker)
    return None if records is None else (records,)


def captured_host(hosts: Mapping[str, Host]) -> Host | None:
    """The host whose links are captured: the first client with a link."""
    clients = (h for h in hosts.values() if h.role is Role.CLIENT and h.ends)
    return next(clients, None)


def prepare_capture(client: Host) -> dict[str, str]:
    """Start capturing, in a machine that becomes a template or for :func:`capturing` to go on with.

    :returns: what :attr:`Machine.prepared` has to say for that
    """
    _start(client)
    return {_prepared_key(client): "yes"}


def prepare_capture_once(client: Host | None) -> None:
    """Start capturing already, if there is something to capture and it was not started before."""
    if client and _prepared_key(client) not in client.machine.prepared:
        client.machine.prepared = {**client.machine.prepared, **prepare_capture(client)}


@contextmanager
def capturing(client: Host, hosts: Mapping[str, Host], logs: Path) -> Iterator[WireCapture]:
    """Capture all links of a client while the context lasts.

    :param hosts: the hosts of the environment, by name
    :param logs: a directory for what tcpdump says
    :raises ProvisionError: tcpdump did not start
    """
    links: list[LinkCapture] = []
    for end in client.ends:
        peer = next(e for e in hosts[end.peer].ends if e.ipv4.network == end.ipv4.network)
        file = _file(client, end.device)
        file.write_bytes(b"")
        mac = bytes.fromhex(end.mac.replace(":", ""))
        log = logs / f"{end.device}.log"
        links.append(LinkCapture(end.device, mac, peer.ipv4.ip, GrowingPcap(file), log))
    devices = [link.device for link in links]
    if not (client.machine.prepared.get(_prepared_key(client)) and _adopt(client, devices)):
        _start(client)
    try:
        yield WireCapture(client, links)
    finally:
        if not client.machine.death():
            said = client.run(["bash", "-c", _STOP, "stop", *devices], check=False).stdout
            logs.mkdir(parents=True, exist_ok=True)
            for link, text in zip(links, said.split("device ")[1:], strict=False):
                link.log.write_text(text.partition("\n")[2])


def _start(client: Host) -> None:
    there = client.machine.shared.path_there
    devices = [(e.device, str(there(_file(client, e.device)))) for e in client.ends]
    pause = _PAUSE.get(client.machine.accelerator, _LONG_PAUSE)
    ring = _RING.get(client.machine.accelerator, _LARGE_RING)
    script = ["bash", "-c", _START, "start", _TCPDUMP, _PUMP, str(pause), str(ring)]
    started = client.run([*script, *(word for pair in devices for word in pair)], check=False)
    if not started.ok:
        raise ProvisionError(
            f"tcpdump did not start on {client.name}", detail=started.output[-2000:]
        )


def _adopt(client: Host, devices: Sequence[str]) -> bool:
    return client.run(["bash", "-c", _ADOPT, "adopt", *devices], check=False).ok


def _file(client: Host, device: str) -> Path:
    return client.machine.shared.here / f"capture-{device}.pcap"


def _prepared_key(client: Host) -> str:
    return f"capture {client.name}"


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
