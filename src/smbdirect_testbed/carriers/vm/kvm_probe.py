"""Whether KVM on this computer really runs guests.

``/dev/kvm`` may exist where guest code is emulated instruction by instruction (KVM inside a
paravirtualised machine, nested virtualisation half switched on): a stock kernel then crawls and
dies. So a guest of a few instructions is run: vector arithmetic, which the instruction emulator of
the kernel does not have, and a loop that takes a millisecond natively and seconds when emulated.
Interface: https://docs.kernel.org/virt/kvm/api.html
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import select
import signal
import struct
import time
from dataclasses import dataclass
from pathlib import Path

DEVICE = Path("/dev/kvm")

_DEADLINE = 1.0
_LOOPS = 2_000_000

_GET_API_VERSION = 0xAE00
_CREATE_VM = 0xAE01
_GET_VCPU_MMAP_SIZE = 0xAE04
_CREATE_VCPU = 0xAE41
_RUN = 0xAE80
_SET_USER_MEMORY_REGION = 0x4020AE46
_SET_REGS = 0x4090AE82
_GET_SREGS = 0x8138AE83
_SET_SREGS = 0x4138AE84

_EXIT_IO = 2
_EXIT_HLT = 5
_EXIT_INTERNAL_ERROR = 17

_MEMORY_SIZE = 0x10000
_PAGE_TABLES = 0x1000
_CODE = 0x8000
_DATA = 0x9000


@dataclass(frozen=True)
class KvmVerdict:
    """Whether KVM works here, and the reason in words."""

    works: bool
    reason: str


class _Segment(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("selector", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("present", ctypes.c_uint8),
        ("dpl", ctypes.c_uint8),
        ("db", ctypes.c_uint8),
        ("s", ctypes.c_uint8),
        ("l", ctypes.c_uint8),
        ("g", ctypes.c_uint8),
        ("avl", ctypes.c_uint8),
        ("unusable", ctypes.c_uint8),
        ("padding", ctypes.c_uint8),
    ]


class _Table(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint16),
        ("padding", ctypes.c_uint16 * 3),
    ]


class _Sregs(ctypes.Structure):
    _fields_ = [
        *((name, _Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        *((name, _Table) for name in ("gdt", "idt")),
        *(
            (name, ctypes.c_uint64)
            for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
        ),
        ("interrupt_bitmap", ctypes.c_uint64 * 4),
    ]


def probe(device: Path = DEVICE, *, deadline: float = _DEADLINE) -> KvmVerdict:
    """Run a guest of a few instructions and judge KVM by the result.

    It runs in a forked child, because a broken KVM may never return. Where KVM works this takes a
    few milliseconds.

    :param deadline: seconds until the guest is given up
    """
    if platform.machine() != "x86_64":
        return KvmVerdict(False, f"this computer is {platform.machine()}, the images are x86_64")
    if not device.exists():
        return KvmVerdict(False, f"there is no {device}")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(device, writer)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], deadline)
        answer = os.read(reader, 4096).decode() if ready else ""
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not ready:
        return KvmVerdict(
            False, f"a loop of {_LOOPS} steps did not end in {deadline:g} s: guests are emulated"
        )
    works, _, reason = answer.partition(" ")
    return KvmVerdict(works == "yes", reason or "the probe died")


def _child(device: Path, writer: int) -> None:
    """Write ``yes`` or ``no`` and the reason to the pipe, and end without Python's clean-up."""
    try:
        begun = time.monotonic()
        failure = _run_guest(device)
        milliseconds = (time.monotonic() - begun) * 1000
        answer = f"no {failure}" if failure else f"yes a test guest ran in {milliseconds:.0f} ms"
    except PermissionError:
        answer = f"no {device} may not be opened by this user (is it in the group kvm?)"
    except OSError as e:
        answer = f"no {device}: {e.strerror}"
    finally:
        # Also on an unexpected exception: a second copy of the caller must not live on.
        try:
            os.write(writer, answer.encode())
        finally:
            os._exit(0)


def _run_guest(device: Path) -> str | None:
    """Run the guest; None if it did what it should, otherwise the error."""
    kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    if (version := fcntl.ioctl(kvm, _GET_API_VERSION, 0)) != 12:
        return f"KVM has interface version {version}, not 12"
    vm = fcntl.ioctl(kvm, _CREATE_VM, 0)
    memory = mmap.mmap(-1, _MEMORY_SIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, _SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, _MEMORY_SIZE, address))
    _write_page_tables(memory)
    code = _guest_code()
    memory[_CODE : _CODE + len(code)] = code
    memory[_DATA : _DATA + 16] = struct.pack("<4I", 1, 2, 3, 4)

    vcpu = fcntl.ioctl(vm, _CREATE_VCPU, 0)
    shared = mmap.mmap(vcpu, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE, 0))
    _enter_long_mode(vcpu)
    # rax … r15, rip, rflags; rflags has one bit that is always set
    registers = [0] * 16 + [_CODE, 2]
    fcntl.ioctl(vcpu, _SET_REGS, struct.pack("<18Q", *registers))

    fcntl.ioctl(vcpu, _RUN, 0)
    (reason,) = struct.unpack_from("<I", shared, 8)
    if reason == _EXIT_INTERNAL_ERROR:
        return "guest instructions are emulated here, and the emulator lacks some"
    if reason not in (_EXIT_IO, _EXIT_HLT):
        return f"the test guest stopped for reason {reason}"
    if memory[_DATA : _DATA + 16] != struct.pack("<4I", 2, 4, 6, 8):
        return "the test guest computed something wrong"
    return None


def _guest_code() -> bytes:
    return b"".join(
        (
            b"\x66\x0f\x6f\x04\x25" + struct.pack("<I", _DATA),  # movdqa xmm0, [_DATA]
            b"\x66\x0f\xfe\xc0",  # paddd xmm0, xmm0
            b"\x66\x0f\x7f\x04\x25" + struct.pack("<I", _DATA),  # movdqa [_DATA], xmm0
            b"\xb9" + struct.pack("<I", _LOOPS),  # mov ecx, _LOOPS
            b"\xff\xc9\x75\xfc",  # 1: dec ecx; jnz 1b
            b"\xe6\x80\xf4",  # out 0x80, al; hlt
        )
    )


def _write_page_tables(memory: mmap.mmap) -> None:
    """Map the first 2 MiB to themselves with one large page."""
    present_writable, large = 0x3, 0x80
    entries = (_PAGE_TABLES + 0x1000, _PAGE_TABLES + 0x2000, large)
    for level, entry in enumerate(entries):
        offset = _PAGE_TABLES + level * 0x1000
        memory[offset : offset + 8] = struct.pack("<Q", entry | present_writable)


def _enter_long_mode(vcpu: int) -> None:
    """Set the processor up for 64-bit code in ring 0 with SSE."""
    sregs = _Sregs()
    fcntl.ioctl(vcpu, _GET_SREGS, sregs)
    common = {"limit": 0xFFFFFFFF, "present": 1, "s": 1, "g": 1}
    sregs.cs = _Segment(selector=8, type=0xB, l=1, **common)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, _Segment(selector=16, type=0x3, db=1, **common))
    sregs.cr0 = 0x80000033  # PG NE ET MP PE
    sregs.cr3 = _PAGE_TABLES
    sregs.cr4 = 0x620  # OSXMMEXCPT OSFXSR PAE
    sregs.efer = 0x500  # LMA LME
    fcntl.ioctl(vcpu, _SET_SREGS, sregs)
