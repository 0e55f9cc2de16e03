"""The Python module for SMB-Direct sockets: as the C header has it, and what needs no kernel."""

from __future__ import annotations

import errno
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from smbdirect_testbed import smbdirect as smbdirect
from smbdirect_testbed.lib import paths

_CONSTANTS = {
    "IPPROTO_SMBDIRECT": smbdirect.IPPROTO_SMBDIRECT,
    "SOL_SMBDIRECT": smbdirect.SOL_SMBDIRECT,
    "SMBDIRECT_PARAMETERS": smbdirect._PARAMETERS,
    "SMBDIRECT_REMOTE_INVALIDATE": smbdirect._REMOTE_INVALIDATE,
    "SMBDIRECT_RDMA_REGISTER": smbdirect._RDMA_REGISTER,
    "SMBDIRECT_RDMA_DEREGISTER": smbdirect._RDMA_DEREGISTER,
    "SMBDIRECT_RDMA_READ": smbdirect._RDMA_READ,
    "SMBDIRECT_RDMA_WRITE": smbdirect._RDMA_WRITE,
    "SMBDIRECT_RDMA_COMPLETION": smbdirect._RDMA_COMPLETION,
    "SMBDIRECT_NETIF_RDMA_CAPABLE": smbdirect._NETIF_RDMA_CAPABLE,
    "SMBDIRECT_RDMA_REMOTE_WRITE": smbdirect._REMOTE_WRITE,
    "SMBDIRECT_PARAMETERS_SIZE_VER0": smbdirect._PARAMETERS_STRUCT.size,
    "sizeof(struct smbdirect_parameters)": smbdirect._PARAMETERS_STRUCT.size,
    "sizeof(struct smbdirect_rdma_completion)": smbdirect._COMPLETION.size,
    "sizeof(struct smbdirect_descriptor_v1)": smbdirect._DESCRIPTOR.size,
}


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_constants_are_those_of_the_header(tmp_path: Path) -> None:
    lines = [f'printf("%d\\n", (int)({name}));' for name in _CONSTANTS]
    source = tmp_path / "constants.c"
    source.write_text(
        "#include <stdio.h>\n"
        f'#include "{paths.driver()}/include/smbdirect_socket.h"\n'
        f"int main(void) {{ {' '.join(lines)} }}\n"
    )
    subprocess.run(["cc", "-o", tmp_path / "constants", source], check=True)
    printed = subprocess.run([tmp_path / "constants"], check=True, capture_output=True, text=True)
    assert dict(zip(_CONSTANTS, map(int, printed.stdout.split()), strict=True)) == _CONSTANTS


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_parameters_are_those_of_the_header(tmp_path: Path) -> None:
    """Every field, at its place."""
    names = list(smbdirect.ConnectionParameters.__dataclass_fields__)
    lines = [
        f'printf("%zu\\n", offsetof(struct smbdirect_parameters, {name}) / 4);' for name in names
    ]
    source = tmp_path / "fields.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n"
        f'#include "{paths.driver()}/include/smbdirect_socket.h"\n'
        f"int main(void) {{ {' '.join(lines)} }}\n"
    )
    subprocess.run(["cc", "-o", tmp_path / "fields", source], check=True)
    printed = subprocess.run([tmp_path / "fields"], check=True, capture_output=True, text=True)
    assert list(map(int, printed.stdout.split())) == list(range(len(names)))


def test_remote_invalidate_is_upstreams_number() -> None:
    """_IOW('S', 0x20, __u32)"""
    assert smbdirect._REMOTE_INVALIDATE == 0x40045320


def test_without_the_module() -> None:
    if Path("/sys/module/smbdirect_socket").exists():
        pytest.skip("this computer has the kernel module")
    with pytest.raises(OSError, match="not supported") as caught:
        smbdirect.smbdirect_socket()
    assert caught.value.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EINVAL)


def test_a_parameter_that_is_no_number_of_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smbdirect, "IPPROTO_SMBDIRECT", socket.IPPROTO_TCP)
    wrong = smbdirect.ConnectionParameters(recv_credit_max=-1)
    with pytest.raises(OSError, match="Invalid argument") as caught:
        smbdirect.smbdirect_socket(parameters=wrong)
    assert caught.value.errno == errno.EINVAL


def test_copied_alone_it_works(tmp_path: Path) -> None:
    """With the standard library only: the file is given away as it is."""
    copy = tmp_path / "smbdirect.py"
    shutil.copy(Path(smbdirect.__file__), copy)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import smbdirect; print(smbdirect.__all__)"
    )
    done = subprocess.run(
        ["python3", "-I", "-S", "-c", script, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "rdma_readv" in done.stdout


def test_memory_whose_registration_cannot_be_ended_is_not_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device is out of room for a moment."""
    refuses = True
    asked: list[bytes] = []

    def operate(sock: socket.socket, kind: int, request: bytes) -> None:
        asked.append(request)
        if refuses:
            raise OSError(errno.ENOBUFS, "no room")

    monkeypatch.setattr(smbdirect, "_operate", operate)
    with socket.socket() as sock:
        registration = smbdirect.Registration(sock, memoryview(bytearray(8)))
        registration._descriptors.append(smbdirect.Descriptor(1, 2, 3))
        with pytest.raises(OSError, match="no room"):
            registration.close()
        assert len(registration._buffer) == 8
        refuses = False
        registration.close()
        registration.close()
    assert len(registration._buffer) == 0
    assert len(asked) == 2
