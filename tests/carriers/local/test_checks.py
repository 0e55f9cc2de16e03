"""The carrier local says in one line why it cannot be, and only then does anything."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.helpers.paths import DATA

from smbdirect_testbed.carriers.local import provide
from smbdirect_testbed.carriers.local.checks import ThisComputer, objections, require_computer
from smbdirect_testbed.carriers.local.modules import NEEDED
from smbdirect_testbed.carriers.local.record import LocalRecord
from smbdirect_testbed.config.envfile import list_environments, load_environment, parse_environment
from smbdirect_testbed.config.spec import CarrierKind, DriverSpec, EnvironmentSpec, ServerKind
from smbdirect_testbed.environment.blueprint import resolve
from smbdirect_testbed.kernel.running import LoadedModule, RunningKernel
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import ProvisionError, UsageError

FITTING = ThisComputer(
    root=True,
    capabilities=(1 << 41) - 1,
    first_user_namespace=True,
    programs=frozenset(["mke2fs", "mount", "nsenter", "unshare"]),
    filesystems=frozenset(["cgroup2", "devtmpfs"]),
    ipv6=True,
    signed_only=False,
    loaded={"ext4": LoadedModule("ext4", 3)},
    rdma_shared=True,
    rdma_links=frozenset(["rxe0"]),
    networks={"eth0": (ip_network("192.0.2.0/24"), ip_network("2001:db8::/64"))},
    listening=frozenset([22]),
)


@pytest.fixture
def kernel(tmp_path: Path) -> RunningKernel:
    return install(tmp_path, "smbdirect", "siw", "cifs", "ksmbd", "smbdirect_socket")


def install(directory: Path, *driver: str) -> RunningKernel:
    """A kernel with what is needed built in, some modules, and headers."""
    names = "".join(f"extra/{name}.ko.xz:\n" for name in driver)
    (directory / "modules.dep").write_text(
        f"kernel/drivers/rdma-rxe.ko: kernel/net/a-b.ko\n{names}"
    )
    (directory / "modules.builtin").write_text("".join(f"kernel/{n}.ko\n" for n in NEEDED))
    return RunningKernel("7.3.4", "#1", directory)


@pytest.fixture
def spec() -> EnvironmentSpec:
    return load_environment("local-rxe")


@pytest.fixture
def spec_sharing() -> EnvironmentSpec:
    """With a server in the computer's own network stack."""
    spec = load_environment(str(DATA / "local-rxe-ksmbd.toml"))
    servers = tuple(dataclasses.replace(s, kind=ServerKind.SMBD) for s in spec.servers)
    return dataclasses.replace(spec, servers=servers)


def problems(spec: EnvironmentSpec, kernel: RunningKernel, here: ThisComputer) -> list[str]:
    return [o.problem for o in objections(spec, kernel, here)]


def test_no_objection(
    spec: EnvironmentSpec, spec_sharing: EnvironmentSpec, kernel: RunningKernel
) -> None:
    assert problems(spec, kernel, FITTING) == []
    assert problems(spec_sharing, kernel, FITTING) == []


def test_ksmbd_would_serve_the_computers_files(kernel: RunningKernel) -> None:
    spec = load_environment(str(DATA / "local-rxe-ksmbd.toml"))
    (problem,) = problems(spec, kernel, FITTING)
    assert "ksmbd serves files of the computer's own root" in problem


IN_USE = {"smbdirect": LoadedModule("smbdirect", 2, ("cifs",))}
IDLE = {
    "smbdirect": LoadedModule("smbdirect", 1, ("cifs",)),
    "cifs": LoadedModule("cifs", 0),
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"root": False}, "which only root may"),
        ({"capabilities": ~(1 << 16)}, "root has no CAP_SYS_MODULE here"),
        ({"first_user_namespace": False}, "user namespace"),
        ({"programs": FITTING.programs - {"nsenter"}}, "no program nsenter"),
        ({"filesystems": frozenset(["cgroup2"])}, "no devtmpfs"),
        ({"ipv6": False}, "IPv6 is off"),
        ({"loaded": IN_USE}, "module smbdirect, which is part of the driver, is in use"),
        ({"rdma_shared": False}, "confined to their network namespaces"),
        ({"rdma_links": frozenset(["rxe_server0"])}, "an RDMA link rxe_server0 already"),
    ],
)
def test_the_computer_is_not_as_it_must_be(
    spec: EnvironmentSpec, kernel: RunningKernel, change: dict[str, Any], said: str
) -> None:
    (problem,) = problems(spec, kernel, dataclasses.replace(FITTING, **change))
    assert said in problem


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"networks": {"smb1": ()}}, "an interface smb1 already"),
        ({"networks": {"br0": (ip_network("10.7.0.0/16"),)}}, "where br0 of this computer is"),
        ({"networks": {"br0": (ip_network("fd07:1::/48"),)}}, "an address in fd07:1::/64"),
        ({"listening": frozenset([445])}, "TCP port 445, on which smbd is to listen"),
    ],
)
def test_only_the_computers_own_stack_can_collide(
    spec: EnvironmentSpec,
    spec_sharing: EnvironmentSpec,
    kernel: RunningKernel,
    change: dict[str, Any],
    said: str,
) -> None:
    here = dataclasses.replace(FITTING, **change)
    (problem,) = problems(spec_sharing, kernel, here)
    assert said in problem
    assert problems(spec, kernel, here) == []


def test_an_idle_driver_is_in_the_way_of_another_build_only(
    spec: EnvironmentSpec, kernel: RunningKernel
) -> None:
    here = dataclasses.replace(FITTING, loaded=IDLE)
    assert problems(spec, kernel, here) == []
    built = dataclasses.replace(spec, driver=DriverSpec())
    assert "module smbdirect is loaded already" in problems(built, kernel, here)[0]


def test_modules_are_missing(spec: EnvironmentSpec, tmp_path: Path) -> None:
    none = RunningKernel("7.3.4", "#1", tmp_path / "none")
    assert "no modules for the running kernel 7.3.4" in problems(spec, none, FITTING)[0]

    bare = install(tmp_path, "smbdirect", "cifs")
    assert problems(spec, bare, FITTING) == [
        f"there is nothing to build the socket module against: no {tmp_path}/build"
    ]
    (tmp_path / "build").mkdir()
    (tmp_path / "build/Makefile").touch()
    assert problems(spec, install(tmp_path, "smbdirect", "cifs"), FITTING) == []
    assert problems(spec, install(tmp_path, "cifs", "smbdirect_socket"), FITTING) == [
        "the driver is not installed: there is no smbdirect.ko for kernel 7.3.4"
    ]

    (tmp_path / "modules.dep").write_text("extra/smbdirect.ko:\nextra/cifs.ko:\n")
    no_rxe = RunningKernel("7.3.4", "#1", tmp_path)
    assert "has no module rdma_rxe" in problems(spec, no_rxe, FITTING)[0]


def test_a_kernel_that_takes_signed_modules_only(
    spec: EnvironmentSpec, kernel: RunningKernel
) -> None:
    here = dataclasses.replace(FITTING, signed_only=True)
    assert problems(spec, kernel, here) == []
    built = dataclasses.replace(spec, driver=DriverSpec())
    assert "takes signed modules only" in problems(built, kernel, here)[0]


def test_the_gravest_is_said(
    spec: EnvironmentSpec, kernel: RunningKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = dataclasses.replace(FITTING, root=False, ipv6=False)
    monkeypatch.setattr(ThisComputer, "look", lambda: here)
    with pytest.raises(ProvisionError, match=r"carrier local: .* only root may") as e:
        require_computer(spec, kernel)
    assert "\n" not in e.value.message
    assert e.value.hint


def test_one_at_a_time(
    spec: EnvironmentSpec, kernel: RunningKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ThisComputer, "look", lambda: FITTING)
    monkeypatch.setattr(provide, "read_record", lambda: None)
    require_computer(spec, kernel)
    other = LocalRecord("machine", uuid4(), Path("/somewhere"), "", (), ())
    monkeypatch.setattr(provide, "read_record", lambda: other)
    with pytest.raises(ProvisionError, match=r"another environment is up .* /somewhere"):
        require_computer(spec, kernel)


def test_what_is_found_here_can_be_read() -> None:
    here = ThisComputer.look()
    assert here.filesystems
    assert "lo" in here.networks


def test_it_is_never_a_default() -> None:
    named = {n for n in list_environments() if load_environment(n).carrier is CarrierKind.LOCAL}
    assert named == {"local-rxe"}


@pytest.mark.parametrize(
    ("replaced", "by", "said"),
    [
        ('carrier = "local"', 'carrier = "vm"', "origin installed needs carrier local"),
        ("[driver]", '[machine]\nkernel_options = ["x"]\n[driver]', "has its options already"),
        ('name = "server"', 'name = "server"\nmachine = "other"', "has one machine"),
    ],
)
def test_a_file_that_asks_for_too_much(replaced: str, by: str, said: str) -> None:
    path = paths.environments() / "local-rxe.toml"
    text = path.read_text().replace(replaced, by, 1)
    with pytest.raises(UsageError, match=said):
        resolve(parse_environment(text, path))
