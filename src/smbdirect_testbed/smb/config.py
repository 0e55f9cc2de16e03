"""Configuration files of Samba and of ksmbd."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import PurePosixPath

from smbdirect_testbed.smb.server import Account

Section = Mapping[str, str]

_IO_SIZE = str(1 << 20)
"""Bytes; the largest SMB2 message that our SMB-Direct socket carries, also over TCP.

Samba would negotiate 8 MiB; a connection over RDMA could not carry such a message.
"""


def render(sections: Mapping[str, Section]) -> str:
    """The text of a file in smb.conf's syntax.

    :raises ValueError: a line break in a name or value would make it another parameter
    """
    lines: list[str] = []
    for name, parameters in sections.items():
        lines.append(f"[{name}]")
        lines += [f"\t{key} = {value}" for key, value in parameters.items()]
        lines.append("")
    for text in (t for n, s in sections.items() for t in (n, *s, *s.values())):
        if "\n" in text:
            raise ValueError(f"line break in {text!r}")
    return "\n".join(lines)


def smbd_config(
    *,
    name: str,
    interfaces: list[IPv4Interface | IPv6Interface],
    transports: str,
    private: PurePosixPath,
    share: str,
    share_directory: PurePosixPath,
    extra: Section | None = None,
) -> str:
    """smb.conf of a separate smbd, which may run together with others.

    :param name: its NetBIOS name
    :param interfaces: the only addresses it listens on
    :param transports: the value of ``server smb transports``
    :param private: a directory that it has for itself, on a filesystem that can map files
    :param extra: more parameters of the section global
    """
    return render(
        {
            "global": {
                "netbios name": name,
                "workgroup": "TESTBED",
                "server role": "standalone server",
                "interfaces": " ".join(str(i) for i in interfaces),
                "bind interfaces only": "yes",
                "server smb transports": transports,
                "smb2 max read": _IO_SIZE,
                "smb2 max write": _IO_SIZE,
                "smb2 max trans": _IO_SIZE,
                "passdb backend": f"smbpasswd:{private}/smbpasswd",
                "private dir": f"{private}/private",
                "state directory": f"{private}/state",
                "cache directory": f"{private}/cache",
                "lock directory": f"{private}/lock",
                "pid directory": f"{private}/pid",
                "ncalrpc dir": f"{private}/ncalrpc",
                "log level": "1",
                "debug pid": "yes",
                "load printers": "no",
                "disable spoolss": "yes",
                **(extra or {}),
            },
            share: {
                "path": str(share_directory),
                "read only": "no",
                # As Samba's own selftest has it; with it smb2.create can set and read ACLs.
                "vfs objects": "acl_xattr",
            },
        }
    )


def smbpasswd_line(account: Account) -> str:
    """An account in the format of smbpasswd(5), with a password that never expires.

    Written instead of made by smbpasswd(8), which takes seconds in an emulated machine. ``UID``
    stands for the user's id, which only the machine knows.
    """
    no_lanman_hash = "X" * 32
    return f"{account.user}:UID:{no_lanman_hash}:{account.nt_hash}:[UX         ]:LCT-6A000000:"


def ksmbd_account_line(account: Account) -> str:
    """An account in the format of ksmbdpwd.db(5)."""
    return f"{account.user}:{base64.b64encode(bytes.fromhex(account.nt_hash)).decode()}\n"


def client_config(transports: str) -> str:
    """smb.conf of a client with these ``client smb transports``."""
    return render({"global": {"client smb transports": transports}})


def ksmbd_config(*, name: str, interface: str, share: str, share_directory: PurePosixPath) -> str:
    """ksmbd.conf.

    :param interface: the only network interface on which it listens for TCP; RDMA listens on all
    """
    return render(
        {
            "global": {
                "netbios name": name,
                "workgroup": "TESTBED",
                "interfaces": interface,
                "bind interfaces only": "yes",
                "server multi channel support": "yes",
            },
            share: {"path": str(share_directory), "read only": "no"},
        }
    )
