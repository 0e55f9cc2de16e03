"""What is measured: one function a row, or a few rows that are measured together."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

import psutil

from smbdirect_testbed.bench.measure import Figure, read_record, run, started
from smbdirect_testbed.bench.virtme import with_virtme
from smbdirect_testbed.config.envfile import load_environment
from smbdirect_testbed.config.spec import (
    EnvironmentSpec,
    HostSpec,
    LinkEnd,
    LinkSpec,
    RdmaType,
    Role,
)
from smbdirect_testbed.environment import instance
from smbdirect_testbed.environment.blueprint import resolve
from smbdirect_testbed.environment.environment import Environment
from smbdirect_testbed.environment.provide import provide, started_machines
from smbdirect_testbed.image.image import provide_image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel.toolchain import SOURCE_PARTS, provide_toolchain
from smbdirect_testbed.lib.errors import MachineDied
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.machine.loaded_driver import LoadedDriver
from smbdirect_testbed.machine.machine import Machine
from smbdirect_testbed.machine.running_agent import running_agent
from smbdirect_testbed.machine.topology import made_hosts

_ENVIRONMENTS = {"vm": "rxe", "uml": "uml-rxe"}
_SHORTEST = "test_links_are_active"
_ECHO = "test_echo and blocking and ipv4 and test_socket"
_COMMANDS = 20
_HOSTS = (2, 4, 8, 16, 32, 64)
_PATIENCE = 20.0
"""Seconds for so many hosts, after which no more are tried: with RDMA links, twice as many take
four times as long, and longer to be removed."""
_AT_ONCE = 8
_EDITED = Path("fs/smb/smbdirect/socket.c")


@dataclass(frozen=True)
class Settings:
    """How to measure.

    :param times: how often each thing is measured
    :param carriers: which carriers
    """

    times: int
    carriers: tuple[str, ...]
    progress: Progress


def first_scenario(settings: Settings) -> Iterator[Figure]:
    """From the typed command to the first scenario; a run before has made what can be kept."""
    goals = {"vm": 2.5, "uml": 1.5}
    for carrier in settings.carriers:
        run(_ENVIRONMENTS[carrier], "-k", _SHORTEST)
        ran = [run(_ENVIRONMENTS[carrier], "-k", _SHORTEST) for _ in range(settings.times)]
        phases = {
            phase: statistics.median(r.record["timings"].get(phase, 0) for r in ran)
            for phase in ("machine", "driver_load", "hosts", "servers", "watch")
        }
        yield Figure(
            f"first-{carrier}",
            f"typed command to first scenario, {carrier}",
            "s",
            goals[carrier],
            tuple(r.timing("first_scenario_s") for r in ran),
            ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in phases.items()),
        )


def after_a_crash(settings: Settings) -> Iterator[Figure]:
    """A machine that died, ended and replaced by one that runs a command."""
    goals = {"vm": 2.0, "uml": 1.0}
    for carrier in settings.carriers:
        seconds = []
        for _ in range(settings.times):
            with ExitStack() as second, _environment(_ENVIRONMENTS[carrier], settings) as first:
                _crash(first.machine)
                begun = time.monotonic()
                first.machine.death()
                machine = second.enter_context(_bare_machine(_ENVIRONMENTS[carrier], settings))
                machine.run(["true"])
                seconds.append(time.monotonic() - begun)
        yield Figure(
            f"crash-{carrier}",
            f"a fresh machine after a crash, {carrier}",
            "s",
            goals[carrier],
            tuple(seconds),
        )


def edit_to_echo(settings: Settings) -> Iterator[Figure]:
    """A file of the driver edited, to the end of a run with an echo over its sockets."""
    goals = {"vm": 20.0, "uml": 15.0}
    for carrier in settings.carriers:
        with _kernel_tree(settings) as tree:
            arguments = (_ENVIRONMENTS[carrier], "--driver", str(tree), "-k", _ECHO)
            run(*arguments)
            seconds = []
            for number in range(settings.times):
                edited = tree / _EDITED
                text = edited.read_text()
                edited.write_text(f"{text}\n/* {time.time_ns()} {number} */\n")
                seconds.append(run(*arguments).seconds)
        yield Figure(
            f"edit-{carrier}",
            f"edit one driver file to echo passed, {carrier}",
            "s",
            goals[carrier],
            tuple(seconds),
        )


def command_overhead(settings: Settings) -> Iterator[Figure]:
    """What a command in a host takes longer than the command itself."""
    goals = {"vm": 60.0, "uml": 15.0}
    loop = 'i=0; while [ $i -lt "$0" ]; do /bin/true; i=$((i + 1)); done'
    for carrier in settings.carriers:
        values = []
        with _environment(_ENVIRONMENTS[carrier], settings) as environment:
            client = environment.host(Role.CLIENT)
            for _ in range(settings.times):
                begun = time.monotonic()
                for _ in range(_COMMANDS):
                    client.run(["/bin/true"])
                middle = time.monotonic()
                client.run(["sh", "-c", loop, str(_COMMANDS)])
                end = time.monotonic()
                values.append(1000 * ((middle - begun) - (end - middle)) / _COMMANDS)
        yield Figure(
            f"command-{carrier}",
            f"overhead of a host command, {carrier}",
            "ms",
            goals[carrier],
            tuple(values),
        )


def many_hosts(settings: Settings) -> Iterator[Figure]:
    """Hosts in one machine, in pairs with a link; then with an RDMA link on each end as well."""
    for carrier in settings.carriers:
        base = load_environment(_ENVIRONMENTS[carrier])
        cold = replace(base, machine=replace(base.machine, cold=True, memory=6144))
        with (
            _bare_machine(_ENVIRONMENTS[carrier], settings, cold) as machine,
            running_agent(machine),
        ):
            # The first request waits for the agent to have started.
            _seconds_for_hosts(_with_hosts(base, 2, RdmaType.RXE), machine)
            for row, what, rdma in (
                ("hosts", "a host with its link", None),
                ("rdma-hosts", "a host with its link and an RDMA link", RdmaType.RXE),
            ):
                points: list[tuple[float, float]] = []
                for number in _HOSTS:
                    if points and points[-1][1] > _PATIENCE:
                        break
                    seconds = _seconds_for_hosts(_with_hosts(base, number, rdma), machine)
                    points.append((number, seconds))
                (n0, s0), (n1, s1) = points[0], points[-1]
                slope = 1000 * (s1 - s0) / (n1 - n0)
                yield Figure(
                    f"{row}-{carrier}",
                    f"set-up of {what}, {n0:g} to {n1:g} in one machine, {carrier}",
                    "ms",
                    100.0,
                    tuple(1000 * s / n for n, s in points),
                    f"{n1:g} in {s1:.2f} s; {slope:.0f} ms for each one more",
                    tuple(points),
                )


def _seconds_for_hosts(spec: EnvironmentSpec, machine: Machine) -> float:
    begun = time.monotonic()
    with made_hosts(spec, {"machine": machine}, keep=False):
        return time.monotonic() - begun


def at_once(settings: Settings) -> Iterator[Figure]:
    """Several environments at the same time, and the memory that each takes meanwhile."""
    for carrier in settings.carriers:
        with tempfile.TemporaryDirectory(prefix="smbdirect-testbed-bench-") as directory:
            places = [Path(directory) / str(n) for n in range(_AT_ONCE)]
            begun, largest = time.monotonic(), 0.0
            with ExitStack() as stack:
                runs = []
                for place in places:
                    place.mkdir()
                    arguments = [_ENVIRONMENTS[carrier], "-k", f"{_SHORTEST} or rping"]
                    runs.append(stack.enter_context(started(arguments, place)))
                while any(r.poll() is None for r in runs):
                    largest = max(largest, _memory_of_machines())
                    time.sleep(0.2)
            for place, process in zip(places, runs, strict=True):
                read_record(place, process.returncode)
        yield Figure(
            f"memory-{carrier}",
            f"memory of one of {_AT_ONCE} environments at once, {carrier}",
            "MiB",
            150.0,
            (largest / _AT_ONCE,),
            f"all passed, in {time.monotonic() - begun:.0f} s",
        )


def all_scenarios(settings: Settings) -> Iterator[Figure]:
    """The default set of scenarios, from typing to verdict."""
    goals = {"vm": 120.0, "uml": 60.0}
    for carrier in settings.carriers:
        ran = run(_ENVIRONMENTS[carrier])
        yield Figure(
            f"all-{carrier}",
            f"all scenarios, {carrier}",
            "s",
            goals[carrier],
            (ran.seconds,),
            f"{len(ran.record['scenarios'])} results" if "scenarios" in ran.record else "",
        )


ROWS: dict[str, Callable[[Settings], Iterator[Figure]]] = {
    "first": first_scenario,
    "crash": after_a_crash,
    "edit": edit_to_echo,
    "command": command_overhead,
    "hosts": many_hosts,
    "memory": at_once,
    "all": all_scenarios,
    "virtme": lambda settings: with_virtme(settings.times, settings.progress),
}
"""What can be asked for by name."""


@contextmanager
def _environment(name: str, settings: Settings) -> Iterator[Environment]:
    with (
        instance.new_instance(f"bench-{name}", keep=False) as made,
        provide(resolve(load_environment(name)), settings.progress, made.directory) as environment,
    ):
        yield environment


@contextmanager
def _bare_machine(
    name: str, settings: Settings, spec: EnvironmentSpec | None = None
) -> Iterator[Machine]:
    """A machine with the driver loaded, and no hosts unless its template has them."""
    spec = spec or load_environment(name)
    with (
        instance.new_instance(f"bench-{name}-bare", keep=False) as made,
        started_machines(resolve(spec), settings.progress, made.directory) as started,
    ):
        (machine,) = started.machines.values()
        LoadedDriver(machine, started.driver).load()
        yield machine


def _crash(machine: Machine) -> None:
    with suppress(MachineDied):
        machine.run(["sh", "-c", "echo c >/proc/sysrq-trigger"], check=False)


@contextmanager
def _kernel_tree(settings: Settings) -> Iterator[Path]:
    """A part of a kernel tree with the driver in it, as a developer would have it."""
    image = provide_image(read_recipe("trixie"), settings.progress)
    toolchain = provide_toolchain(image, settings.progress)
    with tempfile.TemporaryDirectory(prefix="smbdirect-testbed-bench-") as directory:
        tree = Path(directory) / "linux"
        parts = {toolchain.source / part: tree / part for part in SOURCE_PARTS}
        toolchain.build_root.take(parts)
        yield tree


def _with_hosts(spec: EnvironmentSpec, number: int, rdma: RdmaType | None) -> EnvironmentSpec:
    return replace(spec, hosts=_hosts(number), links=_links(number, rdma), servers=())


def _hosts(number: int) -> tuple[HostSpec, ...]:
    return tuple(HostSpec(f"h{n}", Role.MONITOR) for n in range(number))


def _links(number: int, rdma: RdmaType | None) -> tuple[LinkSpec, ...]:
    def end(n: int, side: int) -> LinkEnd:
        return LinkEnd(
            host=f"h{2 * n + side}",
            ipv4=IPv4Interface(f"10.8.{n}.{side + 1}/24"),
            ipv6=IPv6Interface(f"fd08:{n}::{side + 1}/64"),
            rdma=rdma,
        )

    return tuple(LinkSpec(ends=(end(n, 0), end(n, 1)), mtu=9000) for n in range(number // 2))


def _memory_of_machines() -> float:
    """MiB that all machines of this user's take, shared pages counted once."""
    total = 0
    for process in psutil.process_iter(["name"]):
        name = process.info["name"] or ""
        if name.startswith(("qemu-system", "linux", "uml-")):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
    return total / (1 << 20)


def chosen(names: Sequence[str]) -> dict[str, Callable[[Settings], Iterator[Figure]]]:
    """The rows of these names; all without any."""
    return {name: row for name, row in ROWS.items() if not names or name in names}


def carriers_here() -> tuple[str, ...]:
    """The carriers that this computer has what they need for."""
    needs = {"vm": "qemu-system-x86_64", "uml": "slirp4netns"}
    return tuple(carrier for carrier, program in needs.items() if shutil.which(program))
