"""An unprivileged user does whatever he likes to sockets of protocol 257, on both hosts at once.

``SMBDIRECT_TESTBED_FUZZ_SECONDS`` says for how long (a night's run: 600), and
``SMBDIRECT_TESTBED_FUZZ_SEED`` repeats a run: each process does the same again, as far as what it
meets is the same.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

import pytest

from smbdirect_testbed.scenario import Environment, Host, Program, RdmaType, wait_until

pytestmark = [pytest.mark.thorough, pytest.mark.stands_on("test_socket.py")]

_SECONDS = float(os.environ.get("SMBDIRECT_TESTBED_FUZZ_SECONDS", "12"))
_SEED = os.environ.get("SMBDIRECT_TESTBED_FUZZ_SEED", "")
_PROGRAM = Path(__file__).with_name("programs") / "socket_fuzz.py"
_USER = "tester"
_REFERENCES = "/sys/module/smbdirect_socket/refcnt"
_RELEASE_TIMEOUT = 120.0
"""Seconds in which sockets that nobody has any more must be gone, timeouts on the wire included."""


def _references(environment: Environment) -> int:
    return int(environment.machine.run(["cat", _REFERENCES]).stdout)


# One connect of siw's to nobody holds up all others for two minutes: docs/upstream-bugs.md.
@pytest.mark.needs(RdmaType.RXE)
@pytest.mark.known_splat(
    "set_work_pool_and_clear_pending",
    "smbdirect.ko initialises work that the receipt of the first message may be queueing",
    sometimes=True,
)
def test_random_operations(
    environment: Environment,
    client: Host,
    server: Host,
    scenario_log: Path,
) -> None:
    """Every process can be ended, every socket goes away; the kernel log is watched anyhow."""
    before = _references(environment)
    seed = _SEED or secrets.token_hex(4)
    (scenario_log / "seed.log").write_text(f"SMBDIRECT_TESTBED_FUZZ_SEED={seed}\n")
    program = Program(_PROGRAM, client, server)

    def command(own: Host, peer: Host) -> list[str]:
        mine, theirs = own.end_towards(peer), peer.end_towards(own)
        addresses = [str(mine.ipv4.ip), str(mine.ipv6.ip)]
        peers = [str(theirs.ipv4.ip), str(theirs.ipv6.ip), *addresses]
        user = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"]
        options = ["--seed", f"{seed}-{own.name}", "--seconds", _SECONDS]
        return [*user, *program.argv(own, *options, "--own", *addresses, "--peer", *peers)]

    log = scenario_log / "server.log"
    timeout = _SECONDS + 150
    with server.background(command(server, client), log) as running:
        done = client.run(command(client, server), timeout=timeout, check=False)
        (scenario_log / "client.log").write_text(done.stdout + done.stderr)
        wait_until(lambda: running.poll() is not None, "the server's fuzzer", timeout=timeout)
    for text in (done.stdout, log.read_text()):
        results = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        assert results, f"seed {seed}: a fuzzer ended without a result:\n{text[-2000:]}"
        (result,) = results
        assert result["problems"] == [], f"seed {seed}"
        assert result["user"] != 0
        for what in ("make_friends ok", "send_frame ok", "bytes_received"):
            assert result["counts"].get(what), f"seed {seed}: no {what} in {result['counts']}"
    wait_until(
        lambda: _references(environment) <= before,
        f"the sockets of the fuzzers (seed {seed}) to go away",
        timeout=_RELEASE_TIMEOUT,
        interval=0.5,
    )
