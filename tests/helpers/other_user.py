"""Another user of this computer, who means harm: made for a test, and removed after it."""

from __future__ import annotations

import multiprocessing
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast
from uuid import uuid4

import pytest

T = TypeVar("T")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as other users")


@dataclass(frozen=True)
class OtherUser:
    """An ordinary user."""

    name: str
    uid: int
    gid: int

    def call(self, function: Callable[[], T]) -> T:
        """What a function returns as this user, in a copy of this process.

        :raises AssertionError: it raised, with what
        """
        receive, send = multiprocessing.Pipe(duplex=False)
        if (child := os.fork()) == 0:
            try:
                send.send((True, self._as_this_user(function)))
            except BaseException as e:
                send.send((False, f"{type(e).__name__}: {e}"))
            finally:
                os._exit(0)
        send.close()
        good, result = receive.recv()
        os.waitpid(child, 0)
        assert good, f"{self.name}: {result}"
        return cast(T, result)

    def _as_this_user(self, function: Callable[[], T]) -> T:
        os.setgroups([])
        os.setgid(self.gid)
        os.setuid(self.uid)
        os.chdir("/")
        for name in [name for name in os.environ if name.startswith(("SMBDIRECT_", "XDG_"))]:
            del os.environ[name]
        os.environ["HOME"] = str(self.home)
        return function()

    @property
    def home(self) -> Path:
        """The home directory."""
        return Path(pwd.getpwnam(self.name).pw_dir)

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
    entry = pwd.getpwnam(name)
    try:
        yield OtherUser(name, entry.pw_uid, entry.pw_gid)
    finally:
        # The next one may have the same number.
        shutil.rmtree(f"/tmp/smbdirect-testbed-{entry.pw_uid}", ignore_errors=True)
        subprocess.run(["userdel", "--force", "--remove", name], check=False, capture_output=True)
