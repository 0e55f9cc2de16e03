"""Names and addresses of links, and the agent making them in real namespaces."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smbdirect_testbed import agent
from smbdirect_testbed.config.envfile import load_environment
from smbdirect_testbed.machine.topology import planned_link

Call = Callable[..., Any]


def test_names_fit_and_are_unique() -> None:
    spec = load_environment("rxe")
    ends = [e for i, link in enumerate(spec.links) for e in planned_link(i, link).values()]
    assert len({e.mac for e in ends}) == len({e.rdma_device for e in ends}) == 4
    assert all(len(e.device) <= 15 for e in ends)
    assert planned_link(0, spec.links[0])["client"].peer == "server"


@pytest.fixture
def call() -> Iterator[Call]:
    if os.geteuid() != 0:
        pytest.skip("making namespaces needs root")
    proc = subprocess.Popen(
        [sys.executable, "-P", "-m", agent.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert proc.stdin
    assert proc.stdout
    stdin, stdout = proc.stdin, proc.stdout
    assert ast.literal_eval(stdout.readline()) == {"id": 0, "ok": "ready"}

    def request(do: str, **arguments: Any) -> Any:
        stdin.write(ascii({"id": 7, "do": do, "with": arguments}) + "\n")
        stdin.flush()
        answer = ast.literal_eval(stdout.readline())
        assert answer.pop("id") == 7
        return answer

    yield request
    request("unmake")
    stdin.close()
    proc.wait(timeout=10)
    stdout.close()


def _end(host: str, number: int) -> dict[str, str]:
    return {
        "host": host,
        "device": "smb0",
        "mac": f"02:53:4d:42:77:{number:02x}",
        "ipv4": f"10.77.0.{number}/24",
        "ipv6": f"fd77::{number}/64",
    }


def _link(*ends: dict[str, str]) -> dict[str, Any]:
    return {"ends": list(ends), "mtu": 1500, "neighbours": False, "delay": 0, "loss": 0}


def _inside(pid: int, *command: str) -> str:
    enter = ["nsenter", f"--target={pid}", "--net", "--mount", "--uts", "--"]
    return subprocess.run([*enter, *command], capture_output=True, text=True, check=True).stdout


def test_hosts_and_a_link(call: Call) -> None:
    pids = call("make_hosts", namespaces=["a", "b"], machine_stack=[])["ok"]
    wanted = {**_link(_end("a", 1), _end("b", 2)), "mtu": 9000, "neighbours": True}
    assert call("make_links", links=[wanted]) == {"ok": None}
    assert _inside(pids["a"], "hostname") == "a\n"
    assert _inside(pids["a"], "ls", "/sys/class/net").split() == ["lo", "smb0"]
    (link,) = json.loads(_inside(pids["a"], "ip", "-j", "addr", "show", "dev", "smb0"))
    assert link["mtu"] == 9000
    assert {"10.77.0.1", "fd77::1"} <= {a["local"] for a in link["addr_info"]}
    neighbours = json.loads(_inside(pids["b"], "ip", "-j", "neigh"))
    assert {n["dst"]: n["state"] for n in neighbours} == {
        "10.77.0.1": ["PERMANENT"],
        "fd77::1": ["PERMANENT"],
    }


def test_a_mount_by_one_command_is_there_for_the_next(call: Call, tmp_path: Path) -> None:
    (pid,) = call("make_hosts", namespaces=["a"], machine_stack=[])["ok"].values()
    _inside(pid, "mount", "-t", "tmpfs", "none", str(tmp_path))
    _inside(pid, "touch", str(tmp_path / "file"))
    assert _inside(pid, "ls", str(tmp_path)) == "file\n"
    assert not (tmp_path / "file").exists()


def test_what_was_made_is_not_made_again(call: Call) -> None:
    hosts = {"namespaces": ["a", "b"], "machine_stack": []}
    link = _link(_end("a", 1), _end("b", 2))
    first = call("make_hosts", **hosts)
    made = [call("make_links", links=[link]) for _ in range(2)]
    assert made == [{"ok": None}] * 2
    assert call("make_hosts", **hosts) == first
    call("unmake")
    assert call("make_hosts", **hosts) != first


def test_unmaking_leaves_nothing(call: Call) -> None:
    pids = call("make_hosts", namespaces=["a", "b"], machine_stack=[])["ok"]
    call("make_links", links=[_link(_end("a", 1), _end("b", 2))])
    assert call("unmake") == {"ok": None}
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())


def test_what_the_kernel_refuses_is_told(call: Call) -> None:
    call("make_hosts", namespaces=["a", "b"], machine_stack=[])
    bad = {**_end("b", 2), "ipv4": "10.77.0.2/99"}
    answer = call("make_links", links=[_link(_end("a", 1), bad)])
    said = "make_links: OSError: interface smb0 of host b: Invalid argument (ipv4: Invalid prefix"
    assert answer["error"].startswith(said)
    wanted = {
        "host": "a",
        "device": "smb7",
        "kind": "rxe",
        "name": "rxe7",
        "gids": 1,
        "sysctls": {},
    }
    answer = call("make_rdma_links", links=[wanted])
    start = "make_rdma_links: OSError: RDMA link rxe7 of type rxe on smb7 of host a: "
    assert answer["error"].startswith(start)


_UNMOUNT = """
import os, sys, threading
from smbdirect_testbed.agent import kernel
target = sys.argv[1]
kernel.mount("none", target, "tmpfs", 0)
file = open(target + "/x", "w")
threading.Timer(0.3, file.close).start()
kernel.umount(target)
print(os.path.ismount(target))
"""


def test_a_file_system_in_use_is_unmounted_a_moment_later(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    private = ["unshare", "--mount", "--propagation=private"]
    argv = [*private, sys.executable, "-c", _UNMOUNT, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_census_counts_what_is_made_and_left(call: Call, tmp_path: Path) -> None:
    pids = call("make_hosts", namespaces=["a", "b"], machine_stack=[])["ok"]
    before = call("take_census", holders=pids, modules=[])["ok"]
    call("make_links", links=[_link(_end("a", 1), _end("b", 2))])
    _inside(pids["a"], "mount", "-t", "tmpfs", "none", str(tmp_path))
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        after = call("take_census", holders=pids, modules=[])["ok"]
        sleeping.kill()
    more = {what: number - before.get(what, 0) for what, number in after.items()}
    assert more.pop("process sleep") > 0
    assert {what for what, n in more.items() if n and not what.startswith("process")} == {
        "interface smb0 of host a",
        "interface smb0 of host b",
        f"mount {tmp_path} of host a",
    }
