"""Environment files: good ones load, bad ones end in one line that names file, key and remedy."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from smbdirect_testbed.config.envfile import list_environments, load_environment, parse_environment
from smbdirect_testbed.config.spec import RdmaType, Stack
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import UsageError

RXE = (paths.environments() / "rxe.toml").read_text()
FILE = Path("mine.toml")


def test_every_shipped_environment_loads() -> None:
    assert "rxe" in list_environments()
    for name in list_environments():
        assert load_environment(name).name == name


def test_values_arrive_in_the_spec() -> None:
    spec = parse_environment(RXE, FILE)
    assert spec.name == "mine"
    assert spec.links[0].ends[0].rdma is RdmaType.RXE
    assert str(spec.links[0].ends[1].ipv4) == "10.7.0.1/24"
    assert spec.host("kserver").stack is Stack.MACHINE


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[driver]", "[driver", r"mine.toml: .*line \d+"),
        ("mtu = 9000", "mtuu = 9000", r"mine.toml: links\[1\].mtuu: unknown key"),
        ("mtu = 9000", "mtu = 90", r"links\[1\].mtu: .*greater than or equal to 1280"),
        ("cpus = 2", 'cpus = "2"', r"machine.cpus: input should be a valid integer, not '2'"),
        ('carrier = "vm"\n', "", "carrier: is missing"),
        ('image = "trixie"', 'image = "woody"', "image: unknown image 'woody'"),
        ('rdma = "rxe"', 'rdma = "roce"', r"rdma: .*'rxe' or 'siw', not 'roce'"),
        ('"nbt", "smbdirect"', '"nbt", "pigeon"', r"transports\[3\]: .*not 'pigeon'"),
        ("10.7.0.1/24", "10.7.0.2/24", "two ends have the address 10.7.0.2"),
        ("fd07::1/64", "fd07::2/64", "two ends have the address fd07::2"),
        ("10.7.0.1/24", "10.9.0.1/24", "client and server are not in one network"),
        ('name = "server"', 'name = "client"', "two hosts are named client"),
        ('{ host = "server"', '{ host = "sarver"', "there is no host sarver"),
        ('kind = "smbd"\nhost = "server"', 'kind = "smbd"\nhost = "x"', "there is no host x"),
        ('origin = "distribution"', 'origin = "tree"', "driver: origin tree needs path"),
        (
            'origin = "distribution"',
            'origin = "git"\nurl = "u"\ncommit = "v7.3"',
            "driver.commit: string should match pattern",
        ),
        ('role = "client"', 'role = "client"\ncarrier = "uml"', "have the same carrier; remove"),
        ('description = "', 'name = "y"\ndescription = "', "named by its file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(old: str, new: str, message: str) -> None:
    assert old in RXE
    with pytest.raises(UsageError, match=message) as error:
        parse_environment(RXE.replace(old, new, 1), FILE)
    assert "\n" not in error.value.message


def test_an_unknown_environment_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown environment 'rxee'") as error:
        load_environment("rxee")
    assert "rxe" in (error.value.hint or "")


def test_a_path_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"no environment file /nowhere/x\.toml"):
        load_environment("/nowhere/x.toml")


def test_the_path_of_a_tree_is_made_absolute_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    for written, path in (
        ("~/linux", Path("/home/somebody/linux")),
        ("linux", Path.cwd() / "linux"),
        ("/usr/src/linux", Path("/usr/src/linux")),
    ):
        tree = f'origin = "tree"\npath = "{written}"'
        spec = parse_environment(RXE.replace('origin = "distribution"', tree), FILE)
        assert spec.driver.path == path


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, text: str) -> Path:
        file = tmp_path / f"{name}.toml"
        file.write_text(text)
        return file

    return write


def test_like_another_but_for_what_is_named(write: Callable[..., Path]) -> None:
    rxe = load_environment("rxe")
    mine = load_environment(str(write("mine", 'like = "rxe"\n[machine]\nmemory = 4096\n')))
    assert mine == dataclasses.replace(
        rxe, name="mine", machine=dataclasses.replace(rxe.machine, memory=4096)
    )


def test_a_list_is_replaced_as_a_whole(write: Callable[..., Path]) -> None:
    file = write("mine", 'like = "rxe"\n[[servers]]\nkind = "smbd"\nhost = "server"\n')
    (server,) = load_environment(str(file)).servers
    assert server.host == "server"


def test_like_a_file_that_is_like_another(write: Callable[..., Path]) -> None:
    write("base", 'like = "rxe"\n[machine]\ncpus = 4\n')
    machine = load_environment(
        str(write("mine", 'like = "base.toml"\n[machine]\nmemory = 4096\n'))
    ).machine
    assert (machine.cpus, machine.memory) == (4, 4096)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ('"rxee"', r"mine\.toml: like: unknown environment 'rxee'"),
        ('"other.toml"', r"mine\.toml: like: there is no environment file .*/other\.toml"),
        ('"mine.toml"', r"mine\.toml: like: mine is like mine$"),
        ('"b.toml"', r"c\.toml: like: mine is like b is like c is like b$"),
        ('["rxe"]', r"mine\.toml: like: the name of another environment is needed, not \['rxe'\]"),
        ('"named.toml"', r"named\.toml: name: an environment is named by its file"),
    ],
)
def test_like_what_cannot_be(write: Callable[..., Path], like: str, message: str) -> None:
    write("b", 'like = "c.toml"')
    write("c", 'like = "b.toml"')
    write("named", 'name = "x"')
    with pytest.raises(UsageError, match=message) as error:
        load_environment(str(write("mine", f"like = {like}")))
    assert "\n" not in error.value.message


def test_environments_that_are_like_others_say_what_they_said_before() -> None:
    rxe, uml = load_environment("rxe"), load_environment("uml-rxe")
    assert (uml.hosts, uml.links, uml.servers, uml.driver) == (
        *(rxe.hosts, rxe.links, rxe.servers),
        rxe.driver,
    )
    assert (uml.carrier.value, uml.machine.cpus, uml.machine.memory) == ("uml", 2, 1024)


def test_a_kernel_config_is_a_file() -> None:
    chosen = RXE.replace("[driver]", '[kernel]\nconfig = "debug"\n[driver]', 1)
    assert parse_environment(chosen, FILE).kernel.config == "debug"
    with pytest.raises(UsageError, match=r"kernel\.config: unknown config 'fast'") as error:
        parse_environment(chosen.replace('"debug"', '"fast"'), FILE)
    assert error.value.hint == "there are: debug"
