"""What several processes of one run say, shown once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import threading
from collections import Counter
from typing import Self

_SECONDS = re.compile(r"\b\d+(\.\d+)? s\b")


class SaidOnce:
    """Tells the first of several processes that say the same line; they differ in seconds at most.

    It is made before they are forked. A line that one process says twice is shown twice.
    """

    def __init__(self) -> None:
        self._said = os.memfd_create("said")
        self._threads = threading.Lock()
        self._mine: Counter[bytes] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._said)

    def is_first(self, line: str) -> bool:
        """Whether no other process has said this as often as this one has now."""
        text = hashlib.sha256(_SECONDS.sub("", line).encode()).digest()
        with self._threads:
            self._mine[text] += 1
            entry = hashlib.sha256(text + str(self._mine[text]).encode()).digest()
            # Of processes, and not of the open file, which they share. It ends with its process.
            fcntl.lockf(self._said, fcntl.LOCK_EX)
            try:
                size = os.fstat(self._said).st_size
                said = os.pread(self._said, size, 0)
                if any(said[at : at + len(entry)] == entry for at in range(0, size, len(entry))):
                    return False
                os.pwrite(self._said, entry, size)
                return True
            finally:
                fcntl.lockf(self._said, fcntl.LOCK_UN)
