"""The process that :mod:`.libvirt_embed` runs: opens libvirt, does one thing, and ends.

Usage: ROOT UUID start STATE [LINK...] (the domain's XML on standard input; an empty STATE boots it;
links are inherited sockets), or ROOT UUID save STATE.

The state of a machine is QEMU's migration stream. It goes through a Unix socket below the root:
QEMU is confined by libvirt and may not run programs. Memory that is a shared file is left out of
it (capability ``x-ignore-shared``), so it is small.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_DEADLINE = 60.0


class _Failed(Exception):
    pass


def _main() -> int:
    """Do the work that the arguments name.

    libvirt waits until the QEMU processes that it ended are gone. Without a reaper that takes
    seconds, and a container often has none. So this process reaps them while a child works.
    """
    _become_reaper()
    worker = os.fork()
    if worker == 0:
        os._exit(_work(*sys.argv[1:]))
    while True:
        pid, status = os.wait()
        if pid == worker:
            return os.waitstatus_to_exitcode(status)


def _become_reaper() -> None:
    """Have the orphans among our descendants become our children, prctl(2)."""
    set_child_subreaper = 36
    if ctypes.CDLL(None, use_errno=True).prctl(set_child_subreaper, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _work(root: str, uuid: str, do: str, state: str, *links: str) -> int:
    """Work on a domain; returns an exit status."""
    import libvirt

    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, args=(libvirt,), daemon=True).start()
    try:
        connection = libvirt.open(f"qemu:///embed?root={root}")
        if do == "save":
            _save(connection.lookupByUUIDString(uuid), Path(root), Path(state))
        else:
            domain = connection.createXML(sys.stdin.read(), libvirt.VIR_DOMAIN_START_PAUSED)
            for number, link in enumerate(links, 1):
                _plug(domain, number, int(link))
            if state:
                _load(domain, Path(root), Path(state))
            domain.resume()
    except (libvirt.libvirtError, _Failed, OSError) as e:
        print(e, file=sys.stderr, flush=True)
        return 1
    return 0


def _plug(domain: Any, number: int, link: int) -> None:
    """Connect a network interface's hub, by its number, with a socket.

    QEMU's command line cannot name the socket, because libvirt lets QEMU inherit nothing.
    """
    name = f"link{number}"
    _ask(domain, "getfd", [link], fdname=name)
    _ask(domain, "netdev_add", type="dgram", id=name, local={"type": "fd", "str": name})
    _ask(domain, "netdev_add", type="hubport", id=f"{name}-hub", hubid=number, netdev=name)


def _save(domain: Any, root: Path, state: Path) -> None:
    domain.suspend()
    _ignore_shared(domain)
    with socket.socket(socket.AF_UNIX) as server, state.open("wb") as file:
        path = _address(root)
        server.bind(path)
        server.listen(1)
        server.settimeout(_DEADLINE)
        _ask(domain, "migrate", uri=f"unix:{path}")
        stream, _ = server.accept()
        with stream:
            while data := stream.recv(1 << 20):
                file.write(data)
    _wait(lambda: _migrated(domain), "the machine's state to be saved")


def _load(domain: Any, root: Path, state: Path) -> None:
    _ignore_shared(domain)
    path = _address(root)
    _ask(domain, "migrate-incoming", uri=f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(_DEADLINE)
        stream.connect(path)
        stream.sendall(state.read_bytes())
        stream.shutdown(socket.SHUT_WR)
        _wait(
            lambda: _ask(domain, "query-status")["status"] != "inmigrate",
            "the machine's state to be loaded",
        )


def _migrated(domain: Any) -> bool:
    told = _ask(domain, "query-migrate")
    if told.get("status") == "failed":
        raise _Failed(f"QEMU could not save its state: {told.get('error-desc', 'no reason given')}")
    return bool(told.get("status") == "completed")


def _ignore_shared(domain: Any) -> None:
    capabilities = [{"capability": "x-ignore-shared", "state": True}]
    _ask(domain, "migrate-set-capabilities", capabilities=capabilities)


def _ask(domain: Any, command: str, files: Sequence[int] = (), /, **arguments: Any) -> Any:
    """Give QEMU's monitor a command, with open files, and return the answer."""
    import libvirt_qemu

    request = json.dumps({"execute": command, "arguments": arguments})
    if files:
        said, _ = libvirt_qemu.qemuMonitorCommandWithFiles(domain, request, list(files), 0)
    else:
        said = libvirt_qemu.qemuMonitorCommand(domain, request, 0)
    answer = json.loads(said)
    if "error" in answer:
        raise _Failed(f"{command}: {answer['error'].get('desc')}")
    return answer["return"]


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise _Failed(f"timed out after {_DEADLINE:g} s waiting for {what}")
        time.sleep(0.005)


def _address(root: Path) -> str:
    path = root / "state.sock"
    path.unlink(missing_ok=True)
    return str(path)


def _run_events(libvirt: Any) -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


if __name__ == "__main__":
    sys.exit(_main())
