"""Parameters of SMB-Direct sockets. Runs in a machine, with its plain Python.

Server and client tell in frames of JSON what they were given; every client command prints one line
of JSON. ``smbdirect.py`` beside this file is the testbed's ``socket.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smbdirect_testbed import smbdirect as smbdirect
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import smbdirect

import frames
from frames import frame, limit, name, receive


def wanted(text: str) -> smbdirect.ConnectionParameters:
    """NAME=VALUE,... as parameters"""
    values = dict(pair.split("=") for pair in text.split(",") if pair)
    return smbdirect.ConnectionParameters(**{key: int(value) for key, value in values.items()})


def serve_one(connection: socket.socket) -> None:
    """Say what was agreed, then echo."""
    agreed = asdict(smbdirect.connection_parameters(connection))
    with contextlib.suppress(OSError):
        connection.sendall(frame(json.dumps(agreed).encode()))
        frames.echo(connection)


def serve(options: argparse.Namespace) -> None:
    """Serve clients until killed."""
    with smbdirect.smbdirect_socket(parameters=wanted(options.wanted)) as listener:
        frames.serve(listener, (options.address, options.port), serve_one)


def call(options: argparse.Namespace) -> dict[str, Any]:
    """Connect, say what both sides were given, and whether frames of all sizes come back."""
    with smbdirect.smbdirect_socket(parameters=wanted(options.wanted)) as connection:
        limit(connection)
        connection.connect((options.address, options.port))
        server = json.loads(receive(connection))
        client = smbdirect.connection_parameters(connection)
        echoed = {}
        for size in options.sizes:
            echoed[str(size)] = frames.echoed(connection, size)
        return {"client": asdict(client), "server": server, "echoed": echoed}


def refusals(options: argparse.Namespace) -> dict[str, Any]:
    """What setsockopt() and getsockopt() refuse, and that it changes nothing."""
    results: dict[str, Any] = {"out of range": {}, "changed": []}
    limits = {
        "recv_credit_max": (16, 1024),
        "send_credit_target": (16, 1024),
        "max_send_size": (128, 12288),
        "max_recv_size": (128, 12288),
        "max_fragmented_send_size": (1, 0xFFFFFF),
        "max_fragmented_recv_size": (131072, 0xFFFFFF),
        "max_read_write_size": (os.sysconf("SC_PAGESIZE"), 8 << 20),
        "connect_timeout_ms": (100, 120000),
        "negotiate_timeout_ms": (100, 600000),
        "keepalive_interval_ms": (100, 600000),
        "keepalive_timeout_ms": (100, 120000),
        "resolve_timeout_ms": (100, 120000),
        "initiator_depth": (1, 128),
        "responder_resources": (1, 128),
    }

    def give(sock: socket.socket, value: bytes) -> str:
        try:
            sock.setsockopt(smbdirect.SOL_SMBDIRECT, 1, value)
        except OSError as e:
            return name(e)
        return "accepted"

    def pack(parameters: smbdirect.ConnectionParameters) -> bytes:
        return smbdirect._PARAMETERS_STRUCT.pack(*asdict(parameters).values())

    sock = smbdirect.smbdirect_socket()
    defaults = smbdirect.connection_parameters(sock)
    # Not the defaults, so that a change back to them would be seen as well.
    own = replace(defaults, recv_credit_max=100, max_send_size=4096)
    results["own"] = give(sock, pack(own))
    for field, (least, most) in limits.items():
        for value in (least - 1, most + 1, 0xFFFFFFFF):
            if not value:
                continue
            verdict = give(sock, pack(replace(own, **{field: value})))
            results["out of range"][f"{field}={value}"] = verdict
            if smbdirect.connection_parameters(sock) != own:
                results["changed"].append(f"{field}={value}")
        for value in (least, most):
            other = smbdirect.smbdirect_socket()
            verdict = give(other, pack(smbdirect.ConnectionParameters(**{field: value})))
            now = getattr(smbdirect.connection_parameters(other), field)
            if verdict != "accepted" or now != value:
                results["out of range"][f"{field}={value}"] = f"{verdict}, {now}"
            other.close()
    packed = pack(own)
    results["too short"] = give(sock, packed[:-1])
    results["empty"] = give(sock, b"")
    results["longer, zeroes"] = give(sock, packed + bytes(8))
    results["longer, unknown"] = give(sock, packed + b"\1")
    results["much longer"] = give(sock, packed + bytes(8192))
    results["short get"] = len(sock.getsockopt(smbdirect.SOL_SMBDIRECT, 1, 8))
    results["long get"] = len(sock.getsockopt(smbdirect.SOL_SMBDIRECT, 1, 1024))
    try:
        sock.getsockopt(smbdirect.SOL_SMBDIRECT, 2, 1024)
    except OSError as e:
        results["unknown option"] = name(e)
    sock.bind((options.own_address, 0))
    results["bound"] = give(sock, packed)
    results["after bind"] = smbdirect.connection_parameters(sock) == own
    sock.listen(1)
    results["listening"] = give(sock, packed)
    sock.close()
    with smbdirect.smbdirect_socket(parameters=own) as connection:
        limit(connection)
        connection.connect((options.address, options.port))
        results["connected"] = give(connection, packed)
        receive(connection)
    return results


def silence(options: argparse.Namespace) -> dict[str, Any]:
    """Time until a peer that was stopped, as if its machine had died, is given up."""
    parameters = smbdirect.ConnectionParameters(
        keepalive_interval_ms=1000, keepalive_timeout_ms=1000
    )
    with smbdirect.smbdirect_socket(parameters=parameters) as connection:
        connection.connect((options.address, options.port))
        receive(connection)
        print("connected", flush=True)
        sys.stdin.readline()  # the link is cut now
        begun = time.monotonic()
        try:
            result = f"{len(connection.recv(1))} bytes"
        except OSError as e:
            result = name(e)
        return {"result": result, "seconds": time.monotonic() - begun}


def unaccepted(options: argparse.Namespace) -> dict[str, Any]:
    """Time that a server may take to accept."""
    with smbdirect.smbdirect_socket() as listener:
        listener.bind((options.own_address, 0))
        listener.listen(1)
        parameters = smbdirect.ConnectionParameters(negotiate_timeout_ms=700)
        with smbdirect.smbdirect_socket(parameters=parameters) as connection:
            begun = time.monotonic()
            try:
                connection.connect(listener.getsockname())
                result = "connected"
            except OSError as e:
                result = name(e)
            return {"result": result, "seconds": time.monotonic() - begun}


def interfaces(_: argparse.Namespace) -> dict[str, Any]:
    """Which network interfaces SMB-Direct can use."""
    results: dict[str, Any] = {}
    for interface in [*(known for _, known in socket.if_nameindex()), "nobody0"]:
        try:
            results[interface] = smbdirect.netif_rdma_capable(interface)
        except OSError as e:
            results[interface] = name(e)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Parameters of SMB-Direct sockets.")
    actions = parser.add_subparsers(dest="action", required=True)
    for do in (serve, call, refusals, silence, unaccepted, interfaces):
        action = actions.add_parser(do.__name__, help=do.__doc__)
        action.add_argument("address")
        action.add_argument("port", type=int)
        action.add_argument("--wanted", default="", metavar="NAME=VALUE,...")
        action.add_argument("--own-address", default="")
        action.add_argument("--sizes", type=int, nargs="+", default=[65536])
        action.set_defaults(do=do)
    options = parser.parse_args()
    result = options.do(options)
    if result is not None:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
