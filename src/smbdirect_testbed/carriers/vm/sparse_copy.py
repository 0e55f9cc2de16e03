"""Copies and checksums of sparse files, such as a machine's memory."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 64 << 10
_ZEROS = bytes(_BLOCK)


def copy_sparse(source: Path, target: Path) -> int:
    """Copy a file; blocks of zeros become holes. Returns :func:`checksum`.

    :raises OSError: a file cannot be read or written; the written part stays
    """
    crc = 0
    with source.open("rb", buffering=0) as original, target.open("wb", buffering=0) as copy:
        copy.truncate(os.fstat(original.fileno()).st_size)
        for offset, block in _blocks(original.fileno()):
            crc = _add(crc, offset, block)
            written = os.pwrite(copy.fileno(), block, offset)
            if written < len(block):
                os.pwrite(copy.fileno(), block[written:], offset + written)
    return crc


def checksum(file: Path) -> int:
    """A checksum of a file's content, independent of its holes.

    It detects accidents, not attacks.
    """
    crc = 0
    with file.open("rb", buffering=0) as f:
        for offset, block in _blocks(f.fileno()):
            crc = _add(crc, offset, block)
    return crc


def _add(crc: int, offset: int, block: bytes) -> int:
    return zlib.crc32(block, zlib.crc32(offset.to_bytes(8, "little"), crc))


def _blocks(file: int) -> Iterator[tuple[int, bytes]]:
    """The blocks of a file that are not all zeros, with their offsets."""
    end = os.fstat(file).st_size
    offset = 0
    while offset < end:
        try:
            data = os.lseek(file, offset, os.SEEK_DATA)
        except OSError:
            return  # nothing but a hole is left
        hole = os.lseek(file, data, os.SEEK_HOLE)
        offset = max(offset, data // _BLOCK * _BLOCK)
        while offset < hole:
            block = os.pread(file, _BLOCK, offset)
            if block != _ZEROS[: len(block)]:
                yield offset, block
            offset += _BLOCK
