"""Scenarios that lie outside of the project, with all that those inside have."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from tests.machines.conftest import Outcome, Testbed

from smbdirect_testbed.cli import reference

pytestmark = pytest.mark.vm

_HEAD = """\
import pytest
from smbdirect_testbed.scenario import *

"""

_TESTINFRA = """
def test_files(client, smbd, smbclient):
    client.run(["sh", "-c", "printf größer >/run/outside"])
    mine = client.testinfra.file("/run/outside")
    smbclient.run("put /run/outside outside", transports=[Transport.SMBDIRECT])
    theirs = smbd.host.testinfra.file(str(smbd.share_directory / "outside"))
    assert (theirs.size, theirs.content_string) == (8, "größer")
    assert theirs.sha256sum == mine.sha256sum
    assert not client.testinfra.file("/run/nothing").exists

def test_sockets(client, server, smbd):
    address = f"tcp://{smbd.address(client)}:{PORTS[Transport.TCP]}"
    assert server.testinfra.socket(address).is_listening
    assert not client.testinfra.socket(address).is_listening  # a network stack of its own

def test_processes(server, smbd):
    running = server.testinfra.process.filter(comm="smbd")
    assert "root" in {process.user for process in running}
    assert not server.testinfra.process.filter(comm="nobody")

def test_packages(client, environment):
    samba = client.testinfra.package("samba")
    assert samba.is_installed
    assert samba.version == environment.image.packages["samba"]
    assert not client.testinfra.package("nothing-like-it").is_installed

def test_interfaces(client):
    (end, *_) = client.ends
    assert str(end.ipv4.ip) in client.testinfra.interface(end.device).addresses
    assert not client.testinfra.interface("eth77").exists
"""

_TORTURE = """
def test_rw(torture, wire):
    torture.run("smb2.rw", Transport.SMBDIRECT)
    wire.expect(Transport.SMBDIRECT)
"""
_KNOWNFAIL = """
[[expect]]
suite = "smb2.rw"
tests = ["invalid"]
level = "knownfail"
reason = "known outside, too"
"""


@pytest.fixture(scope="module")
def outcome(module_testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Two files with their own known failures and none, and all examples of fixtures."""
    own, none = (tmp_path_factory.mktemp(name) for name in ("own", "none"))
    examples = [_example(entry) for entry in reference.fixtures()]
    (own / "test_own.py").write_text(_HEAD + _TORTURE + _TESTINFRA)
    (own / "smbtorture").mkdir()
    (own / "smbtorture" / "knownfail.toml").write_text(_KNOWNFAIL)
    (none / "test_none.py").write_text(_HEAD + _TORTURE + "\n".join(examples))
    files: list[Path] = [own / "test_own.py", none / "test_none.py"]
    return module_testbed.run("run", "uml-rxe", *map(str, files))


def _example(entry: reference.Entry) -> str:
    """A scenario that is the example of a fixture; most use hosts, and one needs some traffic."""
    used = ", ".join(dict.fromkeys((entry.name, "client", "server", "smbclient")))
    first = (
        'smbclient.run("ls", transports=[Transport.SMBDIRECT])\n' if entry.name == "wire" else ""
    )
    body = textwrap.indent(f"{first}{entry.example}\n", "    ")
    return f"def test_example_{entry.name}({used}):\n{body}"


def test_own_known_failures(outcome: Outcome) -> None:
    found = {s["id"]: s for s in outcome.record["scenarios"] if "test_own.py" in s["id"]}
    known = [s for id, s in found.items() if id.endswith("::invalid[smbdirect]")]
    assert [s["outcome"] for s in known] == ["knownfail"]
    assert "known outside, too" in known[0]["message"]
    assert {s["outcome"] for s in found.values() if s not in known} == {"passed"}
    assert len(found) == 6 + 4


def test_no_known_failures(outcome: Outcome) -> None:
    """Without a file of them, what fails has failed; and the examples are right."""
    found = {s["id"]: s["outcome"] for s in outcome.record["scenarios"] if "test_none" in s["id"]}
    failed = [id.rpartition("::")[2] for id, outcome in found.items() if outcome == "failed"]
    assert failed == ["invalid[smbdirect]"]
    examples = [outcome for id, outcome in found.items() if "::test_example_" in id]
    # The ordinary kernel cannot look for leaks.
    assert examples == [
        "skipped" if entry.name == "leaks_looked_for" else "passed"
        for entry in reference.fixtures()
    ]
    assert outcome.status == 1
