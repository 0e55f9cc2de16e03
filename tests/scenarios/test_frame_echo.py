"""The program that scenarios run in a machine, here over TCP."""

from __future__ import annotations

import importlib.util
import socket
import threading
from argparse import Namespace
from collections.abc import Iterator
from types import ModuleType

import pytest

from smbdirect_testbed.lib import paths

PROGRAM = paths.PROJECT / "scenarios/programs/frame_echo.py"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("frame_echo", PROGRAM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "IPPROTO_SMBDIRECT", socket.IPPROTO_TCP)
    return module


@pytest.fixture(params=["blocking", "epoll"])
def echo_port(program: ModuleType, request: pytest.FixtureRequest) -> Iterator[int]:
    yield from serve(program, request.param)


@pytest.fixture
def hangup_port(program: ModuleType) -> Iterator[int]:
    yield from serve(program, "hangup")


def serve(program: ModuleType, style: str) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = program._SERVERS[style]
        threading.Thread(target=target, args=(listener.dup(),), daemon=True).start()
        yield listener.getsockname()[1]


def options(port: int, style: str = "blocking", *sizes: int, count: int = 3) -> Namespace:
    sizes = sizes or (65536,)
    return Namespace(address="127.0.0.1", port=port, style=style, sizes=sizes, count=count)


@pytest.mark.parametrize("style", ["blocking", "epoll"])
def test_every_frame_comes_back(program: ModuleType, echo_port: int, style: str) -> None:
    result = program.call(options(echo_port, style, 1, 1024, 1048576))
    for size, seen in result["sizes"].items():
        assert seen["received"] == seen["sent"]
        assert seen["lengths"] == [int(size)] * 3


def test_refusal_is_named(program: ModuleType) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    results = program.connect(options(port))
    assert [results[style]["result"] for style in ("blocking", "epoll")] == ["ECONNREFUSED"] * 2


def test_stream_ends_when_the_server_hangs_up(program: ModuleType, hangup_port: int) -> None:
    result = program.stream(options(hangup_port))
    assert result["send"] in ("EPIPE", "ECONNRESET")
    assert result["sent"] >= program._HANG_UP_AFTER


def test_an_unfinished_frame_is_dropped(program: ModuleType, echo_port: int) -> None:
    result = program.leave(options(echo_port))
    assert result["echoed"] == 4 + 65536
    assert result["next"]["sizes"]
