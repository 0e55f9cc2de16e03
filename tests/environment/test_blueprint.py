"""What the names in a spec stand for: found, or told in one line what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from smbdirect_testbed.carriers.uml.carrier import UmlCarrier
from smbdirect_testbed.config.envfile import list_environments, load_environment, parse_environment
from smbdirect_testbed.config.spec import ServerKind
from smbdirect_testbed.environment.blueprint import resolve
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import UsageError
from smbdirect_testbed.smb.servers import SERVERS

RXE = (paths.environments() / "rxe.toml").read_text()


def test_every_shipped_environment_is_resolved() -> None:
    for name in list_environments():
        assert resolve(load_environment(name)).recipe.name == "trixie"


def test_names_stand_for_rows() -> None:
    blueprint = resolve(load_environment("uml-rxe"))
    assert isinstance(blueprint.carrier, UmlCarrier)
    assert blueprint.server_types == SERVERS
    assert [s.kind for s in blueprint.early_servers] == [ServerKind.SMBD]


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ('carrier = "vm"', 'carrier = "cloud"', "there is no carrier 'cloud'", "local, uml, vm"),
        ('kind = "smbd"', 'kind = "nfsd"', "there is no server 'nfsd'", "ksmbd, smbd"),
        (
            'stack = "machine"',
            'stack = "namespace"',
            'servers: ksmbd needs a host with stack = "machine"',
            "",
        ),
        (
            'origin = "distribution"',
            'origin = "installed"',
            "driver: origin installed needs carrier local",
            "",
        ),
        (
            "[driver]",
            '[kernel]\nconfig = "debug"\n[driver]',
            "kernel: carrier vm takes no config; carrier uml, whose kernel is built here, does",
            "",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(old: str, new: str, message: str, hint: str) -> None:
    assert old in RXE
    spec = parse_environment(RXE.replace(old, new, 1), Path("mine.toml"))
    with pytest.raises(UsageError) as error:
        resolve(spec)
    assert error.value.message == f"environment mine: {message}"
    assert (error.value.hint or "").endswith(hint)
