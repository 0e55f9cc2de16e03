"""How the module of the sockets is loaded, and when it refuses to be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smbdirect_testbed.scenario import (
    WEAK_DEVICE,
    Host,
    LoadedDriver,
    Machine,
    Program,
    RdmaType,
    ServerKind,
    SmbServer,
    wait_until,
)

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.needs(ServerKind.SMBD),
    pytest.mark.stands_on("test_socket.py"),
]

_PROGRAM = Path(__file__).with_name("programs") / "socket_safety.py"
_PORT = 5550
_MODULE = "smbdirect_socket"
_REFERENCES = f"/sys/module/{_MODULE}/refcnt"
_MOST = 2


@contextmanager
def _unloaded(machine: Machine, driver: LoadedDriver, smbd: SmbServer) -> Iterator[str]:
    """Without the module, whose file this is; loaded again, as it was, at the end."""
    file = str(driver.directory / f"{_MODULE}.ko")
    with smbd.stopped():
        _unload(machine)
        try:
            yield file
        finally:
            machine.run(["insmod", file])


def _unload(machine: Machine) -> None:
    def unused() -> bool:
        return machine.run(["cat", _REFERENCES]).stdout.strip() == "0"

    wait_until(unused, "all sockets to go away", timeout=60)
    machine.run(["rmmod", _MODULE])


def test_the_kernel_has_the_protocol(server: Host, driver: LoadedDriver, smbd: SmbServer) -> None:
    """Then the module is not loaded, and says so in a line."""
    machine = server.machine
    with _unloaded(machine, driver, smbd) as file:
        machine.run(["insmod", str(driver.directory / WEAK_DEVICE), "offers=1"])
        try:
            done = machine.run(["insmod", file], check=False)
            log = machine.run(["dmesg"]).stdout.splitlines()[-5:]
        finally:
            machine.run(["rmmod", Path(WEAK_DEVICE).stem])
    assert not done.ok
    told = [line for line in log if f"{_MODULE}: not loaded" in line]
    assert len(told) == 1, log
    assert "the kernel has sockets of protocol 257" in told[0]


def test_shares_out_of_range(server: Host, driver: LoadedDriver, smbd: SmbServer) -> None:
    with _unloaded(server.machine, driver, smbd) as file:
        done = server.machine.run(["insmod", file, "memory_user_percent=0"], check=False)
    assert not done.ok


def test_closed_sockets_have_a_limit(
    client: Host, server: Host, driver: LoadedDriver, smbd: SmbServer, tmp_path: Path
) -> None:
    """Of those that still send: what is left of the others is thrown away."""
    if client.end_towards(server).rdma is RdmaType.SIW:
        pytest.skip("siw takes its time to let go of a connection")
    machine = server.machine
    program = Program(_PROGRAM, client, server)
    with _unloaded(machine, driver, smbd) as file:
        machine.run(["insmod", file, f"max_closing={_MOST}"])
        try:
            with program.serving(tmp_path / "hold.log", "hold", program.address, _PORT):
                result = program.do(
                    "closing", program.address, _PORT, "--count", 12, "--most", _MOST
                )
        finally:
            _unload(machine)
    assert result == {"closing": _MOST}
