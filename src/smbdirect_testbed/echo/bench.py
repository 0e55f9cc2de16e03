"""Measuring: latency, throughput and processor time, by operation, size, depth and transport.

The transports take turns within each point, so that what else happens on the machine hits both.
"""

from __future__ import annotations

import math
import os
import platform
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smbdirect_testbed.echo.connection import Transport, connect
from smbdirect_testbed.echo.operation import Operation
from smbdirect_testbed.echo.workload import Workload

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_NANO = 1_000_000_000
_MICRO = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    :param ports: where the server listens, for each transport to measure
    :param seconds: of measuring for each point and transport
    :param rounds: turns in which these seconds are spent
    """

    address: str
    ports: dict[Transport, int]
    operations: Sequence[Operation] = tuple(Operation)
    sizes: Sequence[int] = (64, 4096, 65536, 1048576)
    depths: Sequence[int] = (1, 8)
    seconds: float = 2.0
    rounds: int = 4
    patience: float = 30.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Processor time, in seconds since some moment.

    :param machine: of all that runs on this machine, its kernel included; in steps of 10 ms
    :param process: of this process alone, in user and kernel mode
    """

    machine: float
    process: float

    @classmethod
    def now(cls) -> CpuTime:
        """What has been used until now."""
        return cls(busy_seconds(Path("/proc/stat").read_text()), time.process_time())


def busy_seconds(proc_stat: str) -> float:
    """Processor time that was not idle, from the text of /proc/stat (see proc_stat(5))."""
    fields = [int(n) for n in proc_stat.partition("\n")[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    # Stolen time is another machine's, and guests' time is in user and nice already.
    del steal
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Tally:
    """What was counted for one point over one transport, all rounds together."""

    operations: int = 0
    seconds: float = 0.0
    machine_cpu: float = 0.0
    process_cpu: float = 0.0
    latencies: array[int] = field(default_factory=lambda: array("Q"))
    """Nanoseconds from handing a request to the socket until its reply was complete."""


def percentile(ordered: Sequence[int], percent: float) -> int:
    """The smallest value that at least ``percent`` % of the values do not exceed (nearest rank).

    :param ordered: values in ascending order, at least one
    """
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def summary(
    tally: Tally, operation: Operation, size: int, depth: int, transport: Transport
) -> dict[str, Any]:
    """A tally in the terms of the results; ``docs/echo.md`` explains them."""
    ordered = sorted(tally.latencies)
    moved = tally.operations * size * operation.ways
    gib = moved / (1 << 30)
    latency = {f"p{p:g}": percentile(ordered, p) / _MICRO for p in PERCENTILES} | {
        "min": ordered[0] / _MICRO,
        "max": ordered[-1] / _MICRO,
        "mean": sum(ordered) / len(ordered) / _MICRO,
    }
    return {
        "operation": operation.value,
        "size": size,
        "depth": depth,
        "transport": transport.value,
        "operations": tally.operations,
        "seconds": round(tally.seconds, 6),
        "operations_per_second": round(tally.operations / tally.seconds, 3),
        "mib_per_second": round(moved / (1 << 20) / tally.seconds, 3),
        "latency_us": {name: round(value, 3) for name, value in latency.items()},
        "machine_cpu_seconds": round(tally.machine_cpu, 3),
        "client_cpu_seconds": round(tally.process_cpu, 6),
        "machine_cpu_seconds_per_gib": round(tally.machine_cpu / gib, 4) if gib else None,
        "client_cpu_seconds_per_gib": round(tally.process_cpu / gib, 4) if gib else None,
    }


def measure(plan: Plan, *, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure all points of a plan; the results as JSON has them, see ``docs/echo.md``.

    :param say: takes a line about each point
    :raises OSError: the server cannot be reached
    :raises WrongAnswer: what came back is not what was sent
    """
    started = time.time()
    document: dict[str, Any] = {
        "schema": 1,
        "kind": "smbdirect-testbed echo bench",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "machine": {
            "kernel": platform.release(),
            "architecture": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        "address": plan.address,
        "ports": {t.value: port for t, port in plan.ports.items()},
        "seconds": plan.seconds,
        "rounds": plan.rounds,
        "results": [],
    }
    with ExitStack() as stack:
        connections = {
            transport: stack.enter_context(
                connect(plan.address, port, transport, patience=plan.patience)
            )
            for transport, port in plan.ports.items()
        }
        for operation, size, depth in _points(plan):
            tallies: dict[Transport, Tally] = {}
            with ExitStack() as point:
                workloads = {
                    transport: point.enter_context(
                        Workload(connection, operation, size, depth, plan.seed)
                    )
                    for transport, connection in connections.items()
                    if connection.rdma or not operation.rdma
                }
                tallies = {transport: Tally() for transport in workloads}
                for workload in workloads.values():
                    _stint(workload, Tally(), seconds=0.0)  # the first is slower, always
                for _ in range(plan.rounds):
                    for transport, workload in workloads.items():
                        _stint(workload, tallies[transport], plan.seconds / plan.rounds)
            for transport, tally in tallies.items():
                result = summary(tally, operation, size, depth, transport)
                document["results"].append(result)
                say(
                    f"{operation} {size} bytes, depth {depth}, {transport}: "
                    f"{result['operations_per_second']:.0f} operations a second"
                )
    return document


def _points(plan: Plan) -> Iterator[tuple[Operation, int, int]]:
    for operation in plan.operations:
        for size in plan.sizes:
            for depth in plan.depths:
                yield operation, size, depth


def _stint(workload: Workload, tally: Tally, seconds: float) -> None:
    """Keep ``depth`` operations under way for a time, and at least that many; then drain."""
    before = CpuTime.now()
    begun = time.perf_counter_ns()
    deadline = begun + int(seconds * _NANO)
    started: list[int] = []
    done = 0
    for _ in range(workload.depth):
        started.append(time.perf_counter_ns())
        workload.begin()
    end = begun
    while done < len(started):
        workload.wait()
        end = time.perf_counter_ns()
        tally.latencies.append(end - started[done])
        done += 1
        workload.verify()
        if time.perf_counter_ns() < deadline:
            started.append(time.perf_counter_ns())
            workload.begin()
    after = CpuTime.now()
    workload.verify_all()
    tally.operations += done
    tally.seconds += (end - begun) / _NANO
    tally.machine_cpu += after.machine - before.machine
    tally.process_cpu += after.process - before.process
