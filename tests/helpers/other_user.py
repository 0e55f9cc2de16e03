"""Another user of this computer, who means harm: made for a test, and removed after it."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as other users")


@dataclass(frozen=True)
class OtherUser:
    """An ordinary user."""

    name: str
    uid: int
    gid: int

    def start(self, argv: Sequence[str], **more: str) -> subprocess.Popen[str]:
        """Start a program as this user."""
        return subprocess.Popen(
            argv,
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            cwd="/",
            env={"PATH": os.environ["PATH"], **more},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, argv: Sequence[str], **more: str) -> str:
        """What a program says as this user; how it ends is not looked at."""
        return self.start(argv, **more).communicate(timeout=60)[0]


@contextmanager
def other_user() -> Iterator[OtherUser]:
    """A user who was not there before."""
    name = f"testbed-{uuid4().hex[:8]}"
    subprocess.run(["useradd", "--create-home", name], check=True, capture_output=True)
    try:
        entry = pwd.getpwnam(name)
        yield OtherUser(name, entry.pw_uid, entry.pw_gid)
    finally:
        subprocess.run(["userdel", "--force", "--remove", name], check=False, capture_output=True)
