"""Crashes of servers, as their logs tell them: a child that dies is no end of its server."""

from __future__ import annotations

import re

_CRASH = re.compile(
    r"INTERNAL ERROR: |PANIC \(pid |smb_panic"
    r"|Assertion .* failed|PANIC: assert failed|terminated by signal|killed by signal"
    r"|exited with (?:signal|status 1[23][0-9])|stack smashing detected|free\(\): |malloc\(\): "
    r"|corrupted (?:size|double-linked)|Sanitizer: |segfault|core dumped"
)
_LINES = 12
"""Of a log, from the first that tells of a crash."""


def crashes(name: str, text: str) -> str | None:
    """What a part of a server's log says of a crash, from where it begins; None if it says nothing.

    :param name: the log's, for the message
    """
    for number, line in enumerate(lines := text.splitlines()):
        if _CRASH.search(line):
            return "\n".join([f"{name}: {line.strip()}", *lines[number + 1 : number + _LINES]])
    return None
