"""Measuring: the statistics, and that a wrong payload is no result."""

from __future__ import annotations

import json
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest

from smbdirect_testbed.echo import server as echo_server
from smbdirect_testbed.echo.bench import (
    Plan,
    Tally,
    busy_seconds,
    measure,
    percentile,
    summary,
)
from smbdirect_testbed.echo.bench_plot import PlotUnavailable, plot
from smbdirect_testbed.echo.bench_report import NoResults, load, table
from smbdirect_testbed.echo.client import WrongAnswer
from smbdirect_testbed.echo.connection import Transport, listen
from smbdirect_testbed.echo.operation import Operation
from smbdirect_testbed.echo.protocol import EchoRequest, repeated, reply_count
from smbdirect_testbed.echo.server import EchoServer
from smbdirect_testbed.echo.workload import Workload

LOCALHOST = "127.0.0.1"


def test_percentile_is_the_nearest_rank() -> None:
    ordered = list(range(1, 101))
    assert [percentile(ordered, p) for p in (0, 1, 50, 99, 99.9, 100)] == [1, 1, 50, 99, 100, 100]
    assert percentile([7], 50) == 7
    assert percentile([1, 2, 3, 4], 50) == 2


def test_busy_seconds() -> None:
    text = "cpu  100 20 300 4000 50 6 7 800 9 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    assert busy_seconds(text) == pytest.approx((100 + 20 + 300 + 6 + 7) / 100)


def test_summary() -> None:
    latencies = array("Q", [5000, 1000, 3000, 2000])
    tally = Tally(4, 2.0, machine_cpu=1.0, process_cpu=0.5, latencies=latencies)
    result = summary(tally, Operation.ECHO, 1 << 20, 2, Transport.TCP)
    assert result["operations_per_second"] == 2
    assert result["mib_per_second"] == 4  # both ways
    assert result["machine_cpu_seconds_per_gib"] == 128
    assert result["client_cpu_seconds_per_gib"] == 64
    assert result["latency_us"] == {
        "p50": 2.0, "p90": 5.0, "p99": 5.0, "p99.9": 5.0, "min": 1.0, "max": 5.0, "mean": 2.75,
    }  # fmt: skip
    assert summary(tally, Operation.SEND, 1 << 20, 2, Transport.TCP)["mib_per_second"] == 2


def measured(**changes: Any) -> dict[str, Any]:
    listener = listen(LOCALHOST, 0, Transport.TCP)
    ports = {Transport.TCP: listener.getsockname()[1]}
    with EchoServer([(listener, Transport.TCP)]):
        return measure(Plan(LOCALHOST, ports, seconds=0.02, rounds=2, **changes))


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return measured(sizes=(1, 20, 5000, 1 << 20), depths=(1, 3, 40))


def test_every_point_is_measured(document: dict[str, Any]) -> None:
    points = {(r["operation"], r["size"], r["depth"]) for r in document["results"]}
    operations = [o for o in Operation if not o.rdma]
    assert points == {
        (o, s, d) for o in operations for s in (1, 20, 5000, 1 << 20) for d in (1, 3, 40)
    }
    for result in document["results"]:
        assert result["operations"] >= 2 * result["depth"]
        latency = result["latency_us"]
        order = [latency[n] for n in ("min", "p50", "p90", "p99", "p99.9", "max")]
        assert order == sorted(order)


@pytest.mark.parametrize("operation", [Operation.ECHO, Operation.RECEIVE, Operation.SEND])
def test_a_wrong_payload_is_an_error(monkeypatch: pytest.MonkeyPatch, operation: Operation) -> None:
    def echo(self: echo_server._Session, request: EchoRequest) -> None:
        data = bytearray(repeated(request.data, request.factor, request.response_size))
        data[-1] ^= 1
        self._connection.send(reply_count(request.message_id, len(data)), bytes(data))

    monkeypatch.setattr(echo_server._Session, "_echo", echo)
    with pytest.raises(WrongAnswer, match=f"{operation} of 1000 bytes: at byte"):
        measured(operations=[operation], sizes=[1000], depths=[2])


def test_a_stale_payload_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    first: list[bytes] = []

    def echo(self: echo_server._Session, request: EchoRequest) -> None:
        first.append(bytes(request.data))
        self._connection.send(reply_count(request.message_id, 1000), first[0])

    monkeypatch.setattr(echo_server._Session, "_echo", echo)
    with pytest.raises(WrongAnswer):
        measured(operations=[Operation.ECHO], sizes=[1000], depths=[1])


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 8])
def test_one_place_never_has_the_same_payload_twice_running(depth: int) -> None:
    workload = object.__new__(Workload)
    workload.depth = depth
    payloads = [workload._payload_of(number) for number in range(4 * depth)]
    assert set(payloads) == {0, 1, 2, 3}
    for number in range(4 * depth):
        assert payloads[number] != payloads[(number + depth) % (4 * depth)]


def test_table(document: dict[str, Any]) -> None:
    text = table(document)
    assert "1 MiB" in text
    assert len({len(line) for line in text.splitlines()[1:] if line}) == 1


def test_table_with_figures_of_a_busy_computer(document: dict[str, Any]) -> None:
    usual = max(map(len, table(document).splitlines()[1:]))
    document["results"][0]["latency_us"]["p99.9"] = 123_456_789.0
    text = table(document)
    assert "123456789" in text
    (width,) = {len(line) for line in text.splitlines()[1:] if line}
    assert width >= usual


def test_results_come_back_from_json(document: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(document))
    assert table(load(file)) == table(document)
    for nonsense in ("", "{}", "[]", '{"schema": 2, "results": [1]}'):
        file.write_text(nonsense)
        with pytest.raises(NoResults):
            load(file)


def test_plot(document: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "bench.svg"
    plot(document, file)
    assert "</svg>" in file.read_text()


def test_plot_without_matplotlib(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PlotUnavailable, match=r"pip install 'smbdirect-testbed\[plot\]'"):
        plot(document, tmp_path / "bench.svg")
