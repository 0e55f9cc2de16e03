"""Core dumps: a program that died by a signal, of whatever kind it was and whoever started it."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from smbdirect_testbed.lib.errors import TestbedError
from smbdirect_testbed.lib.printable import printable
from smbdirect_testbed.lib.untrusted import Unsafe

if TYPE_CHECKING:
    from smbdirect_testbed.machine.machine import Machine

# The image's init has the kernel write them to the shared directory, with these names.
_NAME = re.compile(r"core\.(?P<signal>\d+)\.(?P<pid>\d+)\.(?P<program>.+)")
_UNUSUAL = re.compile(r"[^\w.-]")
_BACKTRACE = r"""
while pgrep -f "^/usr/bin/dd of=$0 " >/dev/null; do sleep 0.1; done  # it is still being written
sync -f "$0"
command -v gdb >/dev/null || exit 0
exec gdb --batch --quiet -ex 'thread apply all backtrace' --core="$0" 2>&1
"""
_LINES = 20
"""Of a backtrace in a message; all of it lies beside the core."""
_SECONDS = 60.0
_MOST = 8
"""Cores kept for one scenario; of more, only the names are told."""


def collect_cores(machines: Iterable[Machine], directory: Path) -> list[str]:
    """Move new core dumps of machines to a directory, each with a backtrace if there is gdb.

    :returns: what died by which signal: a text for each, the first line says it
    """
    found: list[str] = []
    for machine in machines:
        files = machine.shared.files
        with suppress(FileNotFoundError, Unsafe):
            for name in files.names():
                if match := _NAME.fullmatch(name):
                    found.append(_collect(machine, name, match, directory, len(found) < _MOST))
    return found


def _collect(machine: Machine, name: str, match: re.Match[str], directory: Path, keep: bool) -> str:
    program = printable(match["program"])
    what = f"{program} (process {match['pid']}) died by {_signal(int(match['signal']))}"
    lines = [what]
    with suppress(FileNotFoundError, Unsafe):
        if keep:
            kept = f"core.{_UNUSUAL.sub('_', program)}.{match['pid']}"
            trace = _backtrace(machine, name)
            directory.mkdir(parents=True, exist_ok=True)
            machine.shared.files.take(name, directory / kept)
            lines[0] += f"; its core dump is {kept}"
            if trace:
                (directory / f"{kept}.log").write_text("\n".join(trace) + "\n")
                lines += trace[:_LINES]
        machine.shared.files.remove(name)
    return "\n".join(lines)


def _backtrace(machine: Machine, name: str) -> list[str]:
    core = machine.shared.path_there(machine.shared.here / name)
    try:
        done = machine.run(["sh", "-c", _BACKTRACE, str(core)], timeout=_SECONDS, check=False)
    except TestbedError as e:
        return [f"no backtrace: {e.message}"]
    return [printable(line) for line in done.output.splitlines()]


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
