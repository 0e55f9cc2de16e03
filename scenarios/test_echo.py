"""The standalone suite (``smbdirect-testbed echo``) between two hosts; its one file runs there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from smbdirect_testbed.scenario import (
    ECHO_PORTS,
    Expectations,
    Host,
    Outcome,
    ProvisionError,
    RdmaType,
    Subtest,
    Transport,
    Wire,
    pack_echo,
    report_subtest,
    wait_until,
)

pytestmark = [pytest.mark.early, pytest.mark.stands_on("test_socket.py")]

_EXPECTATIONS = Expectations.load(Path(__file__).with_name("echo") / "knownfail.toml")


@dataclass(frozen=True)
class Suite:
    """The suite's file in a machine, and its server's addresses.

    :param rdma: the type of the RDMA link between client and server
    :param log: what the server says
    """

    client: Host
    program: PurePosixPath
    addresses: dict[str, str]
    rdma: RdmaType | None
    log: Path

    def command(self, action: str, *options: object) -> list[str]:
        """The command that does something with the file."""
        return ["python3", "-I", str(self.program), action, *map(str, options)]

    def run(self, transport: Transport, address: str, only: str) -> list[dict[str, Any]]:
        """Run checks; what each was, and last the verdict."""
        options = (address, "--transport", transport, "-k", only, "--json", "--patience", 20)
        done = self.client.run(self.command("run", *options), timeout=240, check=False)
        if done.status not in (0, 1):
            raise ProvisionError("the checks did not run", detail=done.stderr[-2000:])
        return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def _listening(server: Host, command: list[str], log: Path) -> Iterator[None]:
    with server.background(command, log) as running:

        def ready() -> bool:
            if running.poll() is not None:
                raise ProvisionError("the suite's server ended", detail=log.read_text())
            return "ready" in log.read_text()

        wait_until(ready, "the suite's server to listen", timeout=30)
        yield


@pytest.fixture(scope="module")
def suite(client: Host, server: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    # Client and server may be on two machines, which call the directory the same.
    for shared in (client.machine.shared, server.machine.shared):
        file = shared.here / "echo.pyz"
        pack_echo(file)
    end = server.end_towards(client)
    addresses = {"ipv4": str(end.ipv4.ip), "ipv6": str(end.ipv6.ip)}
    log = tmp_path_factory.mktemp("suite") / "server.log"
    made = Suite(client, shared.path_there(file), addresses, end.rdma, log)
    listen = [f"--listen={address}" for address in addresses.values()]
    with _listening(server, made.command("serve", *listen), log):
        yield made
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.mark.parametrize(
    ("transport", "address", "only"),
    [
        pytest.param(Transport.SMBDIRECT, "ipv4", "", id="smbdirect"),
        pytest.param(
            Transport.SMBDIRECT, "ipv6", "echo_", id="smbdirect-ipv6", marks=pytest.mark.thorough
        ),
        pytest.param(Transport.TCP, "ipv4", "", id="tcp", marks=pytest.mark.thorough),
    ],
)
def test_suite(
    request: pytest.FixtureRequest,
    suite: Suite,
    wire: Wire,
    transport: Transport,
    address: str,
    only: str,
) -> None:
    """Each check is a result of its own; RDMA alone carried what was to go over SMB-Direct.

    Once connected, IPv6 makes no difference to RDMA; so there the echoes alone.
    """
    *checks, verdict = suite.run(transport, suite.addresses[address], only)
    variant = request.node.callspec.id
    expected = _EXPECTATIONS.about("echo", transport, rdma=suite.rdma)
    for test in map(_subtest, checks):
        judged = expected.judge(test)
        report_subtest(request.node, f"echo[{variant}]", f"{test.name}[{variant}]", judged)
    assert sum(verdict["counts"].values()) == len(checks)
    assert verdict["counts"]["passed"] > 0
    if transport is Transport.SMBDIRECT:
        wire.expect(transport)


@pytest.mark.thorough
def test_bench(suite: Suite, scenario_log: Path) -> None:
    """A short measurement of everything: its payloads are right, both transports have figures."""
    options = ("--size", "1K", "64K", "--depth", 1, 4, "--seconds", 0.2, "--rounds", 2)
    command = suite.command("bench", suite.addresses["ipv4"], *options, "--json", "-")
    done = suite.client.run(command, timeout=120)
    document = json.loads(done.stdout)
    (scenario_log / "bench.json").write_text(done.stdout)
    measured = {(r["operation"], r["transport"]) for r in document["results"]}
    both = {(o, t) for o in ("echo", "send", "receive") for t in ("smbdirect", "tcp")}
    assert measured == both | {("rdma-read", "smbdirect"), ("rdma-write", "smbdirect")}
    assert all(r["operations"] > 0 for r in document["results"])


def test_nobody_listens(suite: Suite) -> None:
    """One line, and an exit status of its own."""
    port = max(ECHO_PORTS.values()) + 1
    options = (suite.addresses["ipv4"], "--transport", "smbdirect", "--port", port)
    done = suite.client.run(suite.command("run", *options), check=False)
    assert done.status == 3
    assert done.stderr.count("\n") == 1
    assert f"port {port} over smbdirect: Connection refused" in done.stderr


def _subtest(check: dict[str, Any]) -> Subtest:
    outcome = Outcome(check["outcome"])
    return Subtest(check["check"], outcome, check["seconds"], check["message"])
