"""Files of known content, written and read in one directory: the data paths of a mounted share.

What a file of some size holds follows from its name and a seed, so that its reader knows what must
be in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

_BEFORE_BORDER = 1000
"""Bytes of a page that a transfer begins with, so that even small ones use two."""


def content(name: str, size: int, seed: int) -> bytes:
    return random.Random(f"{name} {seed}").randbytes(size)


def _kinds(options: argparse.Namespace) -> Iterator[tuple[str, int, bool]]:
    """Each file's name, its size, and whether it passes by the page cache."""
    for kind, size in itertools.product(("cached", "direct"), options.sizes):
        yield f"{options.name}-{kind}-{size}", size, kind == "direct" and options.mounted


def _memory(size: int) -> memoryview:
    begin = mmap.PAGESIZE - _BEFORE_BORDER
    return memoryview(mmap.mmap(-1, begin + size))[begin:]


def write(file: Path, data: bytes, *, direct: bool) -> None:
    """Write in one call, as far as the kernel takes it; without the page cache if ``direct``."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (os.O_DIRECT if direct else 0)
    memory = _memory(len(data))
    memory[:] = data
    fd = os.open(file, flags, 0o644)
    try:
        done = 0
        while done < len(data):
            done += os.write(fd, memory[done:])
        os.fsync(fd)
    finally:
        os.close(fd)


def read(file: Path, size: int, *, direct: bool) -> bytes:
    """Read it, and one byte more: so a file that is too long is seen."""
    memory = _memory(size + 1)
    fd = os.open(file, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        done = 0
        while n := os.readv(fd, [memory[done:]]):
            done += n
        return bytes(memory[:done])
    finally:
        os.close(fd)


def difference(wanted: bytes, got: bytes) -> str:
    """What is wrong with the content of a file; empty if nothing is."""
    if wanted == got:
        return ""
    if len(wanted) != len(got):
        return f"{len(got)} bytes instead of {len(wanted)}"
    where = next(i for i, (a, b) in enumerate(zip(wanted, got, strict=True)) if a != b)
    return f"wrong from byte {where} on"


def make(options: argparse.Namespace) -> None:
    """Write two files of each size, one through the page cache."""
    for name, size, direct in _kinds(options):
        write(options.directory / name, content(name, size, options.seed), direct=direct)


def verify(options: argparse.Namespace) -> dict[str, str]:
    """Read them, one of each size through the page cache; say what is wrong, by name."""
    wrong = {}
    for name, size, direct in _kinds(options):
        wanted = content(name, size, options.seed)
        if said := difference(wanted, read(options.directory / name, size, direct=direct)):
            wrong[name] = said
    return wrong


def together(options: argparse.Namespace) -> dict[str, str]:
    """Write and read one file in each of many threads, all at once."""
    # Only here, for its import takes as long as the rest.
    from concurrent.futures import ThreadPoolExecutor

    def work(number: int, size: int) -> tuple[str, str]:
        name = f"{options.name}-{number}"
        data = content(name, size, options.seed)
        write(options.directory / name, data, direct=True)
        return name, difference(data, read(options.directory / name, size, direct=True))

    (size,) = options.sizes
    with ThreadPoolExecutor(options.threads) as pool:
        said = pool.map(partial(work, size=size), range(options.threads))
        return {name: wrong for name, wrong in said if wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    for do in (make, verify, together):
        action = actions.add_parser(do.__name__, help=do.__doc__)
        action.add_argument("directory", type=Path)
        action.add_argument("name")
        action.add_argument("--sizes", type=int, nargs="+", default=[1 << 20])
        action.add_argument("--seed", type=int, default=0)
        action.add_argument("--mounted", action="store_true", help="where one can pass by it")
        action.add_argument("--threads", type=int, default=1)
        action.set_defaults(do=do)
    options = parser.parse_args()
    result: Any = options.do(options)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
