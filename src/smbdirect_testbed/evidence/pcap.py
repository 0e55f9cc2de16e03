"""Reading a pcap file while it grows, and writing parts of it.

Only one kind is read: the classic format with microseconds, frames as Linux's "any" device has
them (LINUX_SLL2).
Common readers take a truncated last record for the end of the file; a file that is still being
written needs one that comes back for the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.untrusted import UntrustedDirectory

_MAGIC = 0xA1B2C3D4
_LINUX_SLL2 = 276
_FILE_HEADER = struct.Struct("<IHHiIII")
_RECORD_HEADER = struct.Struct("<IIII")
_LARGEST_RECORD = 1 << 20
_LARGEST_READ = 64 << 20
"""Bytes read at once; the rest is read at the next time."""


class Record(NamedTuple):
    """One captured frame.

    :param header: its record header as it stands in the file
    """

    header: bytes
    frame: bytes


class GrowingPcap:
    """A pcap file that another process is writing; it need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0

    def take(self) -> list[Record]:
        """The complete records that were not returned before.

        :raises ProvisionError: the file is not a pcap file of such frames, or is damaged
        """
        try:
            # A machine writes it, and could have made it a link or let it grow without end.
            with UntrustedDirectory(self.path.parent).open(self.path.name) as file:
                file.seek(self._position)
                data = file.read(_LARGEST_READ)
        except FileNotFoundError:
            return []
        at = 0
        if self._position == 0:
            if len(data) < _FILE_HEADER.size:
                return []
            magic, *_, link_type = _FILE_HEADER.unpack_from(data)
            if magic != _MAGIC or link_type != _LINUX_SLL2:
                raise ProvisionError(f"{self.path} is not a pcap file of LINUX_SLL2 frames")
            at = _FILE_HEADER.size
        records = []
        while at + _RECORD_HEADER.size <= len(data):
            length = _RECORD_HEADER.unpack_from(data, at)[2]
            if length > _LARGEST_RECORD:
                raise ProvisionError(f"{self.path} is damaged: a record of {length} bytes")
            body = at + _RECORD_HEADER.size
            if body + length > len(data):
                break
            records.append(Record(data[at:body], data[body : body + length]))
            at = body + length
        self._position += at
        return records


def write(path: Path, records: Iterable[Record]) -> None:
    """Write records to a new pcap file."""
    with path.open("wb") as file:
        file.write(_FILE_HEADER.pack(_MAGIC, 2, 4, 0, 0, 262144, _LINUX_SLL2))
        for record in records:
            file.write(record.header)
            file.write(record.frame)
