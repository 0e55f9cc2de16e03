"""What is said when the driver does not compile, and what is known of it when it does."""

from __future__ import annotations

import struct
from pathlib import Path, PurePosixPath

import pytest

from smbdirect_testbed.kernel.build_errors import compile_errors
from smbdirect_testbed.kernel.built_driver import build_id, read_manifest, write_manifest
from smbdirect_testbed.lib.errors import ProvisionError

WORK = PurePosixPath("/build/driver")
OUTPUT = """\
make: Entering directory '/usr/src/linux-headers-7.3.4+deb13-amd64'
make[1]: Entering directory '/build/driver/fs/smb'
  CC [M]  smbdirect/connect.o
smbdirect/connect.c: In function 'smbdirect_connect':
smbdirect/connect.c:21:22: error: 'nosuch' undeclared (first use in this function)
   21 |         int broken = nosuch;
smbdirect/connect.c:21:22: note: each undeclared identifier is reported only once
smbdirect/connect.c:30:1: warning: unused
/build/driver/fs/smb/smbdirect/socket.h:5:10: fatal error: no.h: No such file or directory
/usr/src/linux-headers-7.3.4+deb13-common/include/linux/fs.h:9:1: error: expected ';'
make[3]: *** [scripts/Makefile.build:515: smbdirect/connect.o] Error 1
ERROR: modpost: "nothing" [smbdirect/smbdirect.ko] undefined!
"""


def test_compile_errors_name_files_as_in_the_source() -> None:
    assert compile_errors(OUTPUT, WORK) == [
        "fs/smb/smbdirect/connect.c:21:22: error: 'nosuch' undeclared (first use in this function)",
        "fs/smb/smbdirect/socket.h:5:10: fatal error: no.h: No such file or directory",
        "/usr/src/linux-headers-7.3.4+deb13-common/include/linux/fs.h:9:1: error: expected ';'",
        'ERROR: modpost: "nothing" [smbdirect/smbdirect.ko] undefined!',
    ]


def test_compile_errors_are_few() -> None:
    output = "".join(f"a.c:{n}:1: error: no\n" for n in range(3000))
    assert len(compile_errors(output, WORK)) == 10


def elf(build_id: bytes) -> bytes:
    """An ELF64 file with two notes in one section."""
    other = struct.pack("<III", 4, 2, 1) + b"GNU\0" + b"xx\0\0"
    note = other + struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 0x28, 64 + len(note))
    struct.pack_into("<HH", header, 0x3A, 64, 2)
    section = bytearray(64)
    struct.pack_into("<IIQQQQ", section, 0, 0, 7, 0, 0, 64, len(note))
    return bytes(header) + note + bytes(64) + bytes(section)


def test_build_id(tmp_path: Path) -> None:
    (tmp_path / "x.ko").write_bytes(elf(bytes(range(20))))
    assert build_id(tmp_path / "x.ko") == bytes(range(20)).hex()


@pytest.mark.parametrize("content", [b"", b"text", elf(b"")[:64] + bytes(400)])
def test_no_build_id(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ko").write_bytes(content)
    with pytest.raises(ProvisionError, match="no GNU build id"):
        build_id(tmp_path / "x.ko")


def test_manifest(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.ko").write_bytes(elf(name.encode() * 20))
    write_manifest(tmp_path, "digest", ("b", "a"), source="somewhere", version="1")
    built = read_manifest(tmp_path)
    assert [m.name for m in built.modules] == ["b", "a"]
    assert built.modules[0].build_id == b"b".hex() * 20
    assert (built.source, built.version, built.digest) == ("somewhere", "1", "digest")
