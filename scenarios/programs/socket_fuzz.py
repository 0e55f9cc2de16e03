"""Does everything an unprivileged user can think of to sockets of protocol 257, at random.

Runs in a machine, with its plain Python. A round is some processes that share sockets and operate
on them; each round has a seed of its own, made from the run's, so that one round can be repeated.
A round must be over when all its processes are killed: one that is not is stuck in the kernel.
Prints one line of JSON at the end; the exit status is 1 when a process was stuck or crashed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if not TYPE_CHECKING:
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzz_choices import IPPROTO_SMBDIRECT, PORTS
from fuzz_operations import ROUND, Fuzzer

_WORKERS = 2
_END = 60.0
"""Seconds after SIGKILL in which a process must be gone."""


def play(seed: str, options: argparse.Namespace, counts: Counter[str]) -> list[str]:
    """One round; what went wrong."""
    sockets = []
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            sockets.append(socket.socket(family, socket.SOCK_STREAM, IPPROTO_SMBDIRECT))
    # A listener that all processes share, so that there is somebody to connect to.
    for sock in sockets:
        own = [a for a in options.own if (":" in a) == (sock.family == socket.AF_INET6)]
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((own[0], PORTS[0]))
            sock.listen(4)
        sock.setblocking(False)
    until = time.monotonic() + ROUND
    workers: dict[int, int] = {}
    for index in range(_WORKERS):
        reading, writing = os.pipe()
        if pid := os.fork():
            os.close(writing)
            workers[pid] = reading
            continue
        # The child never returns from here, whatever happens.
        status = 2
        try:
            os.close(reading)
            fuzzer = Fuzzer(f"{seed} {index}", options.own, options.peer, sockets)
            fuzzer.run(until)
            os.write(writing, json.dumps(fuzzer.counts).encode())
            status = 0
        except BaseException as e:
            print(f"round {seed}, process {index}: {e!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    for sock in sockets:
        sock.close()
    return [problem for pid, pipe in workers.items() if (problem := _end(pid, pipe, until, counts))]


def _end(pid: int, pipe: int, until: float, counts: Counter[str]) -> str | None:
    """See to the end of a process; what went wrong with it."""
    status = _wait(pid, until + ROUND)
    if status is None:
        counts["killed"] += 1
        os.kill(pid, signal.SIGKILL)
        status = _wait(pid, time.monotonic() + _END)
    if status is None:
        where = _where(pid)
        os.close(pipe)
        return f"process {pid} does not end in {_END:g} s after SIGKILL, it is in {where}"
    with open(pipe, "rb") as file:
        if said := file.read():
            counts.update(json.loads(said))
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    return f"a process ended with status {status}" if status else None


def _wait(pid: int, until: float) -> int | None:
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > until:
            return None
        time.sleep(0.02)


def _where(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/wchan").read_text() or "?"
    except OSError as e:
        return str(e)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz sockets of protocol 257.")
    parser.add_argument("--seed", default=None, help="of the run")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--first", type=int, default=0, help="round to begin with")
    parser.add_argument("--own", nargs="+", required=True, help="this host's addresses")
    parser.add_argument("--peer", nargs="+", required=True, help="addresses to connect to")
    options = parser.parse_args()
    for number in (signal.SIGIO, signal.SIGPIPE, signal.SIGURG):
        signal.signal(number, signal.SIG_IGN)
    seed = options.seed or str(int.from_bytes(os.urandom(4)))
    print(f"seed {seed}", file=sys.stderr, flush=True)
    counts: Counter[str] = Counter()
    problems: list[str] = []
    number = options.first
    end = time.monotonic() + options.seconds
    while time.monotonic() < end and not problems:
        problems = [f"round {number}: {p}" for p in play(f"{seed} {number}", options, counts)]
        number += 1
    result = {
        "seed": seed,
        "user": os.getuid(),
        "rounds": number - options.first,
        "operations": sum(n for name, n in counts.items() if " " in name),
        "counts": dict(sorted(counts.items())),
        "problems": problems,
    }
    print(json.dumps(result))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
