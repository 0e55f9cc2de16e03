"""RDMA by userspace programs: memory that one registers, and the other reads and writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smbdirect_testbed.scenario import Host, Program, RdmaType

pytestmark = [pytest.mark.thorough, pytest.mark.stands_on("test_socket.py")]

_PROGRAM = Path(__file__).with_name("programs") / "socket_rdma.py"
_PORT = 5460
_SIZES = [1, 4096, 4097, 65536, 1048576, 8388608]


@pytest.fixture(scope="module")
def rdma(client: Host, server: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    program = Program(_PROGRAM, client, server)
    log = tmp_path_factory.mktemp("rdma") / "server.log"
    with program.serving(log, "serve", program.address, _PORT):
        yield program


def _do(program: Program, action: str, *options: object) -> dict[str, Any]:
    return program.do(action, program.address, _PORT, *options)


def _check(results: dict[str, Any]) -> None:
    for size, seen in results.items():
        wanted = int(size.split("+")[0])
        assert seen["read"] == {"error": None, "bytes": wanted, "digest": seen["sent"]}
        assert seen["written"] == {"error": None, "bytes": wanted, "digest": seen["arrived"]}
        assert seen["arrived"] != seen["sent"]
        # Nothing of the kernel's addresses.
        assert seen["offset"] < 4096


def test_transfers(rdma: Program) -> None:
    """What the server reads is what the client has, and what it writes arrives; all sizes."""
    results = _do(rdma, "transfers", "--sizes", *_SIZES)
    assert list(results) == [f"{size}+{offset}" for size in _SIZES for offset in (0, 13)]
    _check(results)


def test_remote_invalidation(rdma: Program) -> None:
    """A registration ends with an answer of the server; the client's memory is usable again."""
    result = _do(rdma, "invalidate")
    good = {"error": None, "bytes": 65536, "digest": result["sent"]}
    assert result["first"] == good
    assert result["second"] == good
    assert result["third"]["error"] in ("ECONNRESET", "end of stream", "EIO")


def test_forbidden_accesses(rdma: Program) -> None:
    """Each ends the connection, and changes nothing in the client's memory."""
    results = _do(rdma, "forbidden")
    assert results.pop("untouched") is True
    assert len(results) == 6
    if rdma.client.end_towards(rdma.server).rdma is RdmaType.SIW:
        answer = results.pop("read what may be written")
        assert answer["error"] is None, "siw looks at the right to read now: docs/upstream-bugs.md"
    for case, answer in results.items():
        assert answer["error"] in ("ECONNRESET", "end of stream", "EIO"), case


def test_limits(rdma: Program) -> None:
    results = _do(rdma, "limits")
    assert results.pop("registrations") == 8
    after = results.pop("after all")
    assert after == {"error": None, "bytes": 4096, "digest": results.pop("arrived")}
    assert results == {
        "one more": "ENOBUFS",
        "one again": "ok",
        "no memory": "EINVAL",
        # Linux's other name for EOPNOTSUPP.
        "client reads": "ENOTSUP",
        "client writes": "ENOTSUP",
        "no descriptors": "EINVAL",
        "too many": "EINVAL",
        "too short": "EINVAL",
        "wraps around": "EINVAL",
        "unconnected": "ENOTCONN",
        "urgent data": "ENOTSUP",
        "no result": "EINVAL",
        "unknown request": "EINVAL",
        "in mid frame": "EINVAL",
        "empty frame": "EINVAL",
        "server registers": {"error": "ENOTSUP"},
        "too large": {"error": "EMSGSIZE"},
    }


def test_locked_memory(rdma: Program) -> None:
    """Registered memory counts for its user until it is given back, or the connection ends."""
    assert _do(rdma, "memlock") == {
        "too much": "ENOMEM",
        "half": "ok",
        "all": "ok",
        "more": "ENOMEM",
        "given back": "ok",
        "children": ["ok", "ENOMEM", "ENOMEM", "ENOMEM"],
        "closed": "ok",
        "read-only": "EFAULT",
    }


def test_results_without_blocking(rdma: Program) -> None:
    results = _do(rdma, "events")
    queued = results.pop("queued")
    assert results.pop("tokens") == queued > 0
    assert results == {
        "idle": [],
        "refused": "ENOBUFS",
        "ready": True,
        "no room": "EMSGSIZE",
        "peeked": True,
        "at the end": "EINVAL",
        "in order": True,
        "silent": [],
    }


def test_clients_killed_while_their_memory_is_written(rdma: Program) -> None:
    _check(_do(rdma, "kill", "--count", 5))
