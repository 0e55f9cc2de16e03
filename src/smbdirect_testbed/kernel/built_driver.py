"""A built driver: its modules, and their origin."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from smbdirect_testbed.config import rdma
from smbdirect_testbed.lib.errors import ProvisionError

MODULES = {
    "smbdirect": "fs/smb/smbdirect",
    **{traits.module: source for source, traits in rdma.BUILT.items()},
    "cifs": "fs/smb/client",
    "ksmbd": "fs/smb/server",
    "smbdirect_socket": "smbdirect_socket",
}
"""The driver's modules in the order they are loaded, with the directories they are built in.

What several of them share is a module, too, in kernels where it is one, and is loaded before them.
"""
MANIFEST = "manifest.json"
PRELOAD = "libsmbdirect-preload.so"
LAUNCHER = "smbdirect-run"
LIBRARY = "libsmbdirect.so"
"""libsmbdirect, for programs that use SMB-Direct sockets; next to the preload."""
WITH_LINES = "lines"
"""The directory with the modules as they were before their debugging information was taken off."""
WEAK_DEVICE = "smbdirect_weak_device.ko"
"""A module for some scenarios, in the same directory."""


@dataclass(frozen=True)
class Module:
    """A kernel module.

    :param build_id: the GNU build id, hexadecimal; a loaded module shows it in
        ``/sys/module/NAME/notes/.note.gnu.build-id``
    """

    name: str
    file: Path
    build_id: str


@dataclass(frozen=True)
class BuiltDriver:
    """Everything that is built for one kernel from one source.

    ::

        names = [module.name for module in environment.driver.built.modules]
        assert "smbdirect" in names

    :param digest: of everything that it was made from
    :param modules: in the order they are loaded
    :param preload: the library that lets programs use the socket
    :param launcher: the command that runs a program with the library
    :param source: the origin of the modules' source, in words
    :param version: its version at that origin
    """

    digest: str
    directory: Path
    modules: tuple[Module, ...]
    preload: Path
    launcher: Path
    source: str
    version: str

    @property
    def files_with_lines(self) -> dict[str, Path]:
        """By the modules' names, files that know the lines of source; they may be missing."""
        return {m.name: self.directory / WITH_LINES / m.file.name for m in self.modules}


def write_manifest(directory: Path, digest: str, order: tuple[str, ...], **facts: str) -> None:
    """Write the manifest of a directory with a built driver.

    :param order: the modules' names
    """
    modules = [
        {"name": name, "file": f"{name}.ko", "build_id": build_id(directory / f"{name}.ko")}
        for name in order
    ]
    content = {"digest": digest, **facts, "modules": modules}
    (directory / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def read_manifest(directory: Path) -> BuiltDriver:
    """The built driver in a directory."""
    facts = json.loads((directory / MANIFEST).read_text())
    return BuiltDriver(
        digest=facts["digest"],
        directory=directory,
        modules=tuple(
            Module(m["name"], directory / m["file"], m["build_id"]) for m in facts["modules"]
        ),
        preload=directory / PRELOAD,
        launcher=directory / LAUNCHER,
        source=facts["source"],
        version=facts["version"],
    )


def build_id(file: Path) -> str:
    """The GNU build id in an ELF64 little-endian file.

    Source: the ELF specification's section headers; notes are three words (size of the name,
    size of the value, type), name and value, each padded to 4 bytes.

    :raises ProvisionError: the file has none
    """
    data = file.read_bytes()
    if data[:6] == b"\x7fELF\x02\x01":
        (table,) = struct.unpack_from("<Q", data, 0x28)
        size, count = struct.unpack_from("<HH", data, 0x3A)
        for index in range(count):
            kind, _, _, offset, length = struct.unpack_from(
                "<IQQQQ", data, table + index * size + 4
            )
            if kind != 7:
                continue
            end = offset + length
            while offset < end:
                name, value, note = struct.unpack_from("<III", data, offset)
                start = offset + 12 + (name + 3) // 4 * 4
                if note == 3 and data[offset + 12 : offset + 16] == b"GNU\0":
                    return data[start : start + value].hex()
                offset = start + (value + 3) // 4 * 4
    raise ProvisionError(f"{file} has no GNU build id")
