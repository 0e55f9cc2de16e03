"""A server and a carrier from another package: the one that docs/extending.md shows."""

from __future__ import annotations

import re
import socket
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest

from smbdirect_testbed.carriers import start, table
from smbdirect_testbed.config.envfile import load_environment
from smbdirect_testbed.config.spec import CarrierKind, Role, ServerKind
from smbdirect_testbed.environment import provide
from smbdirect_testbed.environment.blueprint import Blueprint, resolve
from smbdirect_testbed.environment.environment import Environment
from smbdirect_testbed.environment.template_contents import template_plan
from smbdirect_testbed.kernel.built_driver import BuiltDriver
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import MachineDied, ProvisionError, UsageError
from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.machine.host import Host, HostEnd
from smbdirect_testbed.machine.machine import Machine
from smbdirect_testbed.smb.servers import server_names
from smbdirect_testbed.smb.transports import SambaTransports

DOCUMENT = paths.PROJECT / "docs" / "extending.md"
SINK, HERE = ServerKind("sink"), CarrierKind("here")
QUIET = Progress(quiet=True)


def blocks() -> dict[str, str]:
    """The code of the document that has a file's name; what has the same name is one file."""
    found: dict[str, str] = {}
    for name, text in re.findall(r"^```\w+ (\S+)\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S):
        found[name] = found.get(name, "") + text
    return found


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The document's package, installed as pip would; the directory that it is in."""
    files = blocks()
    groups = tomllib.loads(files.pop("pyproject.toml"))["project"]["entry-points"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(table, "_in_use", {})
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("outside_")]:
        del sys.modules[name]


@pytest.fixture
def blueprint(installed: Path) -> Blueprint:
    return resolve(load_environment(str(installed / "mine.toml")))


def test_without_the_package_there_is_no_such_server(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(blocks()["mine.toml"])
    spec = load_environment(str(tmp_path / "mine.toml"))
    with pytest.raises(UsageError, match="there is no carrier 'here'"):
        resolve(spec)
    assert "sink" not in server_names()


def test_its_names_are_found(blueprint: Blueprint) -> None:
    assert type(blueprint.carrier).__name__ == "HereCarrier"
    assert [s.kind for s in blueprint.early_servers] == [SINK]
    assert server_names() == ["ksmbd", "sink", "smbd"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("outside_sink.py", "import nothing_of_this", "sink .* cannot be imported: ModuleNotFound"),
        ("outside_sink.py", "SINK = 7", "server sink: 7 is no ServerType"),
        ("outside_here.py", "HereCarrier = dict", "carrier here: .* makes no Carrier"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_line(
    installed: Path, name: str, text: str, message: str
) -> None:
    (installed / name).write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        resolve(load_environment(str(installed / "mine.toml")))
    assert "\n" not in error.value.message


def test_what_is_in_a_template_depends_on_its_code(installed: Path) -> None:
    file = installed / "outside_sink.py"
    file.write_text(file.read_text() + "SINK = ServerType(Sink, True, can_be_in_template=True)\n")
    blueprint = resolve(load_environment(str(installed / "mine.toml")))
    built = BuiltDriver("digest", Path(), (), Path(), Path(), "", "")
    plan = template_plan(blueprint, "machine", built)
    assert plan
    assert file.read_text() in plan.parts


@pytest.fixture
def environment(
    blueprint: Blueprint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Environment]:
    """The environment; what would need a kernel of its own, and root, is left out."""

    class Driver:
        launcher = PurePosixPath("smbdirect-run")

        def __init__(self, machine: Machine, built: object) -> None: ...

        def load(self) -> None: ...

    @contextmanager
    def made_hosts(spec: object, machines: dict[str, Machine], **hooks: Any) -> Iterator[Any]:
        hooks["before_rdma"]()
        end = HostEnd(
            *("lo", "", IPv4Interface("127.0.0.1/8"), IPv6Interface("::1/128")),
            *(None, None, "client"),
        )
        yield {"server": Host("server", Role.SERVER, machines["machine"], (end,), 0)}

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr(sys.modules["outside_sink"], "PORT", port)
    monkeypatch.setattr(provide, "made_ahead", lambda *_: nullcontext())
    monkeypatch.setattr(provide, "provide_image", lambda *_: None)
    monkeypatch.setattr(provide, "known_transports", lambda *_: SambaTransports(None))
    monkeypatch.setattr(provide, "running_agent", nullcontext)
    monkeypatch.setattr(provide, "LoadedDriver", Driver)
    monkeypatch.setattr(provide, "made_hosts", made_hosts)
    monkeypatch.setattr(blueprint.carrier, "provide_driver", lambda *_: SimpleNamespace())
    with provide.provide(blueprint, QUIET, tmp_path / "instance") as provided:
        yield provided
    with pytest.raises(ConnectionRefusedError):
        _connect()


def _connect() -> None:
    port = vars(sys.modules["outside_sink"])["PORT"]
    socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_machine_and_server_are_there_while_the_environment_is(
    environment: Environment, tmp_path: Path
) -> None:
    assert environment.machine.run(["echo", "hello"]).stdout == "hello\n"
    server = environment.server(SINK)
    assert server
    assert environment.servers() == [server]
    _connect()
    with server.stopped(), pytest.raises(ConnectionRefusedError):
        _connect()
    _connect()


def test_the_machine_is_found_again_and_ended(environment: Environment, tmp_path: Path) -> None:
    instance = tmp_path / "instance"
    server = environment.server(SINK)
    assert server
    server.stop()
    again = start.attach("machine", instance)
    assert again.run(["echo", "still here"]).ok
    start.destroy_all(instance)
    with pytest.raises(MachineDied, match="it was ended"):
        environment.machine.run(["true"])
    start.destroy_all(instance)
    with pytest.raises(ProvisionError, match="there is no machine other"):
        start.attach("other", instance)


def test_a_machine_whose_carrier_was_uninstalled(tmp_path: Path) -> None:
    directory = start.machine_directory(tmp_path, "machine")
    directory.mkdir(parents=True)
    (directory / "carrier").touch()
    start.destroy_all(tmp_path)  # it was not begun
    (directory / "carrier").write_text("here")
    with pytest.raises(ProvisionError, match="cannot be reached: there is no carrier 'here'"):
        start.destroy_all(tmp_path)
    with pytest.raises(ProvisionError, match="cannot be reached: there is no carrier 'here'"):
        start.attach("machine", tmp_path)
