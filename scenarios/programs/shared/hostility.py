"""Cases with hostile peers: each in a process of its own, and sockets that suffer them."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import frames
from raw_smbd import Ended, Impossible, Peer

if TYPE_CHECKING:
    from smbdirect_testbed import smbdirect as smbdirect
else:
    import smbdirect

from violations import LARGEST_FRAME

NEGOTIATE_TIMEOUT = 1.5
KEEPALIVE = 2.0
"""Seconds until silence has been asked about, and not answered."""
PROMPTLY = 10.0
"""Seconds in which a wrong message must have ended the connection; emulated machines are slow."""
_CASE = 40.0
"""Seconds that a case may take."""

VICTIM = smbdirect.ConnectionParameters(
    recv_credit_max=32,
    max_fragmented_recv_size=LARGEST_FRAME,
    connect_timeout_ms=1500,
    negotiate_timeout_ms=int(NEGOTIATE_TIMEOUT * 1000),
    keepalive_interval_ms=int(KEEPALIVE * 500),
    keepalive_timeout_ms=int(KEEPALIVE * 500),
)


def apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do something in a process of its own, which may die of it; what it found out."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        # The child never returns from here, whatever happens.
        try:
            result = work()
        except Ended as e:
            result = {"end": str(e)}
        except Impossible:
            result = {"end": "impossible"}
        except BaseException:
            result = {"trouble": traceback.format_exc(limit=-3)}
        os.write(writer, json.dumps(result).encode())
        os._exit(0)
    os.close(writer)
    ready = select.select([reader], [], [], _CASE)[0]
    text = os.read(reader, 65536) if ready else b'{"trouble": "it never ended"}'
    os.close(reader)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    result = json.loads(text or b'{"end": "died"}')
    return dict(result)


def die() -> None:
    """As a process dies that is killed."""
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_end(peer: Peer, seconds: float = PROMPTLY) -> dict[str, Any]:
    """How the other side ended the connection, and how long it took."""
    begun = time.monotonic()
    end = peer.ended(seconds) or "still there"
    return {"end": end, "seconds": round(time.monotonic() - begun, 2)}


def well_behaved(address: str, port: int) -> str:
    """``echoed`` if an ordinary client is served."""
    deadline = time.monotonic() + PROMPTLY
    while True:
        connection = smbdirect.smbdirect_socket()
        frames.limit(connection)
        with connection:
            error = frames.outcome(partial(connection.connect, (address, port)))
            if error == "ok":
                return frames.echoed(connection)
        # The listener's backlog may be full of hostile ones until they time out.
        if error not in ("ECONNREFUSED", "ETIMEDOUT") or time.monotonic() > deadline:
            return error


def suffer(cases: dict[str, Callable[[], dict[str, Any]]], good: Callable[[], str]) -> None:
    """Do one case after the other, each followed by a good client; print what happened.

    What happens is printed as one line of JSON; a machine that dies leaves the last case's name.
    """
    results = {}
    for case, work in cases.items():
        Path("/dev/kmsg").write_text(f"hostile peer: {case}\n")
        results[case] = apart(work)
        results[case]["good"] = good()
        if "trouble" in results[case] or "trouble" in results[case].get("server", {}):
            break
    print(json.dumps(results))
