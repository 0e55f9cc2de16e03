"""What Samba, ksmbd and Samba's clients are told."""

from __future__ import annotations

import base64
import configparser
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import PurePosixPath

import pytest

from smbdirect_testbed.config.spec import Transport
from smbdirect_testbed.smb.config import (
    client_config,
    ksmbd_account_line,
    ksmbd_config,
    render,
    smbd_config,
    smbpasswd_line,
)
from smbdirect_testbed.smb.server import TESTER
from smbdirect_testbed.smb.transports import SambaTransports

STOCK = SambaTransports(PurePosixPath("/testbed/driver/smbdirect-run"))
NATIVE = SambaTransports(None)
ALL = [Transport.TCP, Transport.NBT, Transport.SMBDIRECT]


def parsed(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.read_string(text)
    return parser


def smb_conf(**changes: str) -> configparser.ConfigParser:
    return parsed(
        smbd_config(
            name="SERVER",
            interfaces=[IPv4Interface("10.7.0.1/24"), IPv6Interface("fd07::1/64")],
            transports=STOCK.spelt(ALL),
            private=PurePosixPath("/run/smbd"),
            share="share",
            share_directory=PurePosixPath("/srv/share"),
            extra=changes,
        )
    )


@pytest.mark.parametrize(
    ("samba", "transports", "spelt"),
    [
        (STOCK, ALL, "tcp, nbt, tcp:5445"),
        (STOCK, [Transport.SMBDIRECT, Transport.TCP], "tcp:5445, tcp"),
        (NATIVE, [Transport.SMBDIRECT, Transport.TCP], "smbdirect, tcp"),
        (STOCK, [], ""),
    ],
)
def test_spelling_keeps_the_order(
    samba: SambaTransports, transports: list[Transport], spelt: str
) -> None:
    assert samba.spelt(transports) == spelt


def test_only_a_samba_without_smbdirect_needs_the_launcher() -> None:
    assert STOCK.command(["smbd"]) == ["/testbed/driver/smbdirect-run", "smbd"]
    assert NATIVE.command(["smbd"]) == ["smbd"]
    assert NATIVE.native
    assert not STOCK.native


def test_smbd_listens_on_its_links_only() -> None:
    section = smb_conf()["global"]
    assert section["interfaces"] == "10.7.0.1/24 fd07::1/64"
    assert section["bind interfaces only"] == "yes"
    assert section["server smb transports"] == "tcp, nbt, tcp:5445"


def test_no_message_of_smbd_is_too_large_for_the_socket() -> None:
    section = smb_conf()["global"]
    sizes = {section[f"smb2 max {what}"] for what in ("read", "write", "trans")}
    assert sizes == {"1048576"}


def test_smbd_keeps_to_its_own_directories() -> None:
    conf = smb_conf()
    directories = [v for k, v in conf["global"].items() if k.endswith((" dir", " directory"))]
    assert len(directories) == len(set(directories)) == 6
    assert all(d.startswith("/run/smbd/") for d in directories)
    assert conf["share"]["path"] == "/srv/share"


def test_more_parameters_win() -> None:
    assert smb_conf(**{"log level": "10"})["global"]["log level"] == "10"


def test_a_value_cannot_smuggle_in_a_parameter() -> None:
    with pytest.raises(ValueError, match="line break"):
        render({"global": {"workgroup": "A\npanic action = reboot"}})


def test_accounts_hold_the_hash_of_the_password() -> None:
    assert smbpasswd_line(TESTER).split(":") == [
        *("tester", "UID", "X" * 32, TESTER.nt_hash),
        *("[UX         ]", "LCT-6A000000", ""),
    ]
    user, _, stored = ksmbd_account_line(TESTER).strip().partition(":")
    assert user == "tester"
    assert base64.b64decode(stored).hex().upper() == TESTER.nt_hash


def test_client_and_ksmbd_are_told_what_was_asked() -> None:
    assert parsed(client_config("tcp"))["global"]["client smb transports"] == "tcp"
    text = ksmbd_config(
        name="K", interface="smb1", share="share", share_directory=PurePosixPath("/srv/ksmbd")
    )
    assert parsed(text)["global"]["interfaces"] == "smb1"
    assert parsed(text)["share"]["path"] == "/srv/ksmbd"
