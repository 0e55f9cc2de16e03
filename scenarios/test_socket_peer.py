"""Peers that speak [MS-SMBD] wrongly, or not at all, as clients and as servers.

Each case ends as the specification says, within its time, and after each an ordinary client is
served; the kernel log is watched anyhow. The hostile side is pyverbs, see ``raw_smbd.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smbdirect_testbed.scenario import (
    PORTS,
    RDMA_PORTS,
    Environment,
    Host,
    Program,
    ProvisionError,
    RdmaType,
    ServerKind,
    SmbServer,
    Transport,
    running_ksmbd,
    wait_until,
)

pytestmark = [pytest.mark.thorough, pytest.mark.stands_on("test_socket.py")]

_PROGRAMS = Path(__file__).with_name("programs")
_PORT = 5500
_SERVER_PORT = 5510
_PROMPT = 6.0
"""Seconds in which a wrong message must have ended the connection."""
_SILENCE = (1.2, 8.0)
"""Seconds in which silence must have: 1.5 of it while negotiating, 2 afterwards."""
_REFERENCES = "/sys/module/smbdirect_socket/refcnt"
_LIST = "/proc/net/smbdirect"
_RELEASE_TIMEOUT = 60.0
_LOST = {"ECONNRESET", "ECONNREFUSED", "ECONNABORTED"}

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def hostile_client(
    client: Host, server: Host, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    """For servers of every kind."""
    program = Program(_PROGRAMS / "hostile_client.py", client, server)
    log = tmp_path_factory.mktemp("victims") / "server.log"
    with program.serving(log, "serve", program.address, _PORT):
        wait_until(lambda: log.read_text().count("listening") == 4, "all servers", timeout=30)
        yield program


@pytest.fixture(scope="module")
def hostile_server(
    client: Host, server: Host, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    program = Program(_PROGRAMS / "hostile_server.py", client, server)
    log = tmp_path_factory.mktemp("hostile") / "server.log"
    with program.serving(log, "serve", program.address, _SERVER_PORT):
        yield program


def _sockets(program: Program) -> int:
    return int(program.server.machine.run(["cat", _REFERENCES]).stdout)


def _attack(program: Program, group: str) -> Results:
    """All cases of a group; an ordinary client was served after each, and no socket is left."""
    before = _sockets(program)
    results: Results = program.do("attack", group, program.address, _PORT, timeout=400)
    return _checked(program, results, before)


def _meet(program: Program, group: str) -> Results:
    before = _sockets(program)
    results: Results = program.do("meet", group, program.address, _SERVER_PORT, timeout=400)
    return _checked(program, results, before)


def _checked(program: Program, results: Results, before: int) -> Results:
    assert results
    for case, result in results.items():
        # What the hostile side itself says, when it is the server.
        assert "end" in result.get("server", result), f"{case}: {result}"
        assert result.pop("good") == "echoed", f"after {case}: {result}"
    try:
        wait_until(
            lambda: _sockets(program) <= before,
            "the sockets of hostile connections to go away",
            timeout=_RELEASE_TIMEOUT,
            interval=0.5,
        )
    except ProvisionError as e:
        hosts = {program.client.name: program.client, program.server.name: program.server}
        left = [f"{n}:\n{h.run(['cat', _LIST]).stdout}" for n, h in hosts.items()]
        raise ProvisionError(e.message, detail="\n".join(left)) from e
    if _iwarp(program):
        # It has neither atomic operations nor immediate data.
        ends = {case: result.get("server", result)["end"] for case, result in results.items()}
        return {case: result for case, result in results.items() if ends[case] != "impossible"}
    return results


def _iwarp(program: Program) -> bool:
    return program.client.end_towards(program.server).rdma is RdmaType.SIW


def _ended(results: Results, least: float = 0, most: float = _PROMPT) -> None:
    for case, result in results.items():
        assert result["end"] == "DISCONNECTED", f"{case}: {result}"
        assert least <= result.get("seconds", least) <= most, f"{case}: {result}"


def test_other_versions(hostile_client: Program) -> None:
    """Refused with STATUS_NOT_SUPPORTED."""
    results = _attack(hostile_client, "versions")
    assert {result["answer"] for result in results.values()} == {"refused"}, results
    _ended(results)


def test_bad_requests(hostile_client: Program) -> None:
    results = _attack(hostile_client, "requests")
    assert {result["answer"] for result in results.values()} == {"none"}, results
    _ended(results)


def test_odd_requests(hostile_client: Program) -> None:
    results = _attack(hostile_client, "odd_requests")
    for case, result in results.items():
        assert result == {"answer": "accepted", "end": "well?"}, case


def test_bad_messages(hostile_client: Program) -> None:
    _ended(_attack(hostile_client, "messages"))


def test_odd_messages(hostile_client: Program) -> None:
    for case, result in _attack(hostile_client, "odd_messages").items():
        assert result == {"end": "echoed"}, case


def test_credits(hostile_client: Program) -> None:
    results = _attack(hostile_client, "credit")
    assert results.pop("one by one") == {"end": "echoed"}
    assert results.pop("no credits, but alive") == {"end": "still there"}
    # A reader may pause for as long as it likes.
    assert results.pop("all that is granted, nobody reads") == {"end": "still there"}
    # The victim makes room from time to time, and the device may try again just then.
    endless = results.pop("more than granted, for ever", {"end": "still there"})
    assert endless["end"] in ("DISCONNECTED", "still there")
    for case in ("more than granted, nobody reads",):
        assert results[case]["refused"] is True
    _ended(results, most=_SILENCE[1])


def test_silence(hostile_client: Program) -> None:
    results = _attack(hostile_client, "silence")
    assert results["answers only"].pop("asked") >= 3
    assert results.pop("answers only") == {"end": "still there"}
    crowd = results.pop("a crowd")
    assert crowd["let in"] >= 16
    assert crowd["end"] == "DISCONNECTED"
    _ended(results, *_SILENCE)


def test_dead_keys(hostile_client: Program) -> None:
    results = _attack(hostile_client, "keys")
    for case, result in results.items():
        # The target of an invalidation answers the message first, and looks then; and a write of
        # iWARP's is done once TCP has it.
        if case != "invalidation" and not (case == "write" and _iwarp(hostile_client)):
            assert result["done"] != "ok", case
    _ended(results)


@pytest.mark.known_splat(
    "smbdirect_connection_recv_io_done",
    "smbdirect.ko warns when a peer writes with immediate data: anybody can make it do so",
)
def test_write_with_immediate(hostile_client: Program) -> None:
    """Without a key, for it writes nothing. The connection ends as it should."""
    if _iwarp(hostile_client):
        pytest.skip("iWARP has no immediate data")
    machine = hostile_client.server.machine
    # It warns once.
    machine.run(["sh", "-c", "echo 1 >/sys/kernel/debug/clear_warn_once"])
    _ended(_attack(hostile_client, "write_with_immediate"))


def test_deaths(hostile_client: Program) -> None:
    """Killed and disconnected at ten points."""
    results = _attack(hostile_client, "deaths")
    assert len(results) == 20
    assert {result["end"] for result in results.values()} == {"died", "left"}


def test_server_does_not_connect(hostile_server: Program) -> None:
    results = _meet(hostile_server, "connecting")
    # siw says the same of a server that refuses as of one that goes away.
    refused = _LOST if _iwarp(hostile_server) else {"ECONNREFUSED"}
    assert results.pop("refuses")["connect"] in refused
    assert results.pop("has no buffer")["connect"] in _LOST | {"ETIMEDOUT"}
    for case, result in results.items():
        assert result["connect"] == "ETIMEDOUT", case
        assert result["client seconds"] <= _SILENCE[1], case


def test_server_refuses(hostile_server: Program) -> None:
    for case, result in _meet(hostile_server, "other_answers").items():
        assert result["connect"] == "ECONNREFUSED", case
        assert result["client seconds"] <= _PROMPT, case


def test_bad_answers(hostile_server: Program) -> None:
    for case, result in _meet(hostile_server, "answers").items():
        assert result["connect"] in _LOST, f"{case}: {result}"
        assert result["client seconds"] <= _PROMPT, case


def test_odd_answers(hostile_server: Program) -> None:
    for case, result in _meet(hostile_server, "odd_answers").items():
        assert result["connect"] == "ok", f"{case}: {result}"
        assert result["server"] == {"end": "well?"}, f"{case}: {result}"


def test_servers_bad_messages(hostile_server: Program) -> None:
    # A reader may have had the beginning of a frame, and is told by what it does next.
    told = {"ECONNRESET", "EPROTO", "EPIPE"}
    if _iwarp(hostile_server):
        # For smbdirect.ko a wrong message and an orderly end are the same: docs/upstream-bugs.md.
        told.add("end of stream")
    for case, result in _meet(hostile_server, "messages").items():
        assert result["connect"] == "ok", case
        assert result["then"] in told, f"{case}: {result}"
        assert result["server"]["end"] == "DISCONNECTED", f"{case}: {result}"
        assert result["client seconds"] <= _PROMPT, case


def test_servers_odd_messages(hostile_server: Program) -> None:
    for case, result in _meet(hostile_server, "odd_messages").items():
        assert result["server"] == {"end": "echoed"}, f"{case}: {result}"


def test_server_is_silent(hostile_server: Program) -> None:
    results = _meet(hostile_server, "silence")
    assert results.pop("within a frame")["then"] in ("ECONNRESET", "EPIPE")
    for case, result in results.items():
        assert result["then"] in ("ETIMEDOUT", "ECONNRESET"), case
        assert result["client seconds"] <= _SILENCE[1], case


def test_servers_dead_keys(hostile_server: Program) -> None:
    # On iWARP as in test_servers_bad_messages.
    told = {"ECONNRESET", "end of stream"} if _iwarp(hostile_server) else {"ECONNRESET"}
    for case, result in _meet(hostile_server, "keys").items():
        assert result["then"] in told, f"{case}: {result}"


def test_server_dies(hostile_server: Program) -> None:
    for case, result in _meet(hostile_server, "deaths").items():
        if case.endswith("negotiated"):
            assert result["connect"] in _LOST | {"ok"}, f"{case}: {result}"
        else:
            assert result["connect"] in _LOST | {"ETIMEDOUT"}, f"{case}: {result}"
        assert result["client seconds"] <= _PROMPT, case


@pytest.mark.needs(ServerKind.SMBD, Transport.SMBDIRECT)
def test_smbd(client: Host, server: Host, smbd: SmbServer) -> None:
    """Samba, on the socket."""
    _smb(Program(_PROGRAMS / "hostile_client.py", client, server), PORTS[Transport.SMBDIRECT])


@pytest.mark.needs(ServerKind.KSMBD, Transport.SMBDIRECT)
def test_ksmbd(environment: Environment, client: Host) -> None:
    """The kernel's server, on smbdirect.ko itself: what holds there holds without the socket."""
    (spec,) = [s for s in environment.spec.servers if s.kind is ServerKind.KSMBD]
    host = environment.hosts[spec.host]
    with running_ksmbd(host, environment.driver, spec.transports):
        rdma = client.end_towards(host).rdma
        assert rdma
        _smb(Program(_PROGRAMS / "hostile_client.py", client, host), RDMA_PORTS[rdma])


def _smb(program: Program, port: int) -> None:
    """Everything that is the same for all servers; each is followed by an SMB2 negotiation."""
    results: Results = program.do("attack_smb", program.address, port, timeout=400)
    assert len(results) > 50
    ends = {"DISCONNECTED"} | ({"impossible"} if _iwarp(program) else set())
    for case, result in results.items():
        assert "end" in result, f"{case}: {result}"
        assert result["good"] == "SMB2", f"after {case}: {result}"
        group = case.partition(": ")[0]
        if group == "versions":
            assert result["answer"] == "refused", f"{case}: {result}"
        if group != "deaths":
            assert result["end"] in ends, f"{case}: {result}"
