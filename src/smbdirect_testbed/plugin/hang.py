"""What a machine is waiting for when a scenario stands still."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from smbdirect_testbed.lib.errors import TestbedError

if TYPE_CHECKING:
    from smbdirect_testbed.machine.host import Host
    from smbdirect_testbed.machine.machine import Machine

_TIMEOUT = 6.0
_MOST_TASKS = 6
"""Lines about tasks in a message; all are in the scenario's hang.log."""

# The kernel's own list of blocked tasks goes to its log. Of the programs that scenarios are about
# the stacks are told whatever they wait for.
_TASKS = r"""
echo w >/proc/sysrq-trigger
cd /proc
for p in [0-9]*; do
    read -r name <"$p/comm" || continue
    state=$(sed -n 's/^State:\t\(.\).*/\1/p' "$p/status")
    case $state/$name in
    D/*|?/smb*|?/ksmbd*|?/mount*|?/umount*|?/rmmod|?/modprobe|?/python3|?/rping|?/ib_*|?/dd) ;;
    *) continue ;;
    esac
    echo "task $name $p $state"
    # Not every architecture keeps stacks; where it waits is known on all.
    [ ! -r "$p/stack" ] || cat "$p/stack"
    [ -s "$p/stack" ] || echo "[<0>] $(cat "$p/wchan")"
done 2>/dev/null
echo "== RDMA resources"
rdma resource show
for kind in qp cm_id mr; do rdma resource show $kind; done
"""
_SOCKETS = r"""
ss -Htunap
[ ! -r /proc/net/smbdirect ] || cat /proc/net/smbdirect
"""
_TASK = re.compile(r"^task (?P<name>\S+) (?P<pid>\d+) (?P<state>\S)$")
_FRAME = re.compile(r"^\[<[0-9a-f]+>\] (?P<function>[\w.]+)")
_WAITING = re.compile(
    r"^(__)?(schedule|io_schedule|wait_|do_wait|switch_to|futex|ep_poll|do_sys_poll|poll_schedule"
    r"|do_epoll|rwsem|mutex|down|hrtimer|sigsuspend|pipe_read|do_sigtimedwait)"
)
"""Functions that say that a task waits, and not for what."""


def investigate(machines: Iterable[Machine], hosts: Iterable[Host]) -> str:
    """What tasks, RDMA resources and sockets of machines are doing, as text.

    What does not answer within seconds is told instead.
    """
    asked: dict[str, tuple[Machine | Host, str]] = {}
    asked |= {f"machine {m.name}": (m, _TASKS) for m in machines}
    asked |= {f"sockets of host {h.name}": (h, _SOCKETS) for h in hosts}
    with ThreadPoolExecutor(max_workers=max(1, len(asked))) as pool:
        answers = {
            what: pool.submit(of.run, ["sh", "-c", script], timeout=_TIMEOUT, check=False)
            for what, (of, script) in asked.items()
        }
        parts = []
        for what, answer in answers.items():
            try:
                said = answer.result().output.rstrip()
            except TestbedError as e:
                said = f"it does not answer: {e.message}"
            parts.append(f"==== {what}\n{said}\n")
    return "\n".join(parts)


def summary(text: str) -> list[str]:
    """What :func:`investigate` found, in a few lines: each task, and where it waits."""
    where: dict[str, list[str]] = {}
    silent: list[str] = []
    task = ""
    for line in text.splitlines():
        if match := _TASK.match(line):
            blocked = " cannot be interrupted" if match["state"] == "D" else ""
            task = f"{match['name']}[{match['pid']}]{blocked}"
            where[task] = []
        elif task and (frame := _FRAME.match(line)):
            where[task].append(frame["function"])
        elif "does not answer" in line:
            silent.append(line)
    found = []
    for task, frames in where.items():
        telling = [f for f in frames if not _WAITING.match(f)] or frames
        found.append(f"{task} in {telling[0]}" if telling else task)
    # Those that cannot be interrupted explain the others.
    found.sort(key=lambda line: "cannot be interrupted" not in line)
    return [*found, *silent][:_MOST_TASKS]
