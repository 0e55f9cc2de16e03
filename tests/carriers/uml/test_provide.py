"""The parts of the uml carrier that need no machine."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from uuid import uuid4

import pytest

from smbdirect_testbed.carriers.boot import claim_port
from smbdirect_testbed.carriers.machine_process import end_processes
from smbdirect_testbed.carriers.uml import provide
from smbdirect_testbed.carriers.uml.provide import attach_uml, destroy_uml
from smbdirect_testbed.carriers.uml.slirp import Slirp
from smbdirect_testbed.carriers.uml.state import UmlIdentity, UmlRecord, UmlState
from smbdirect_testbed.lib.errors import ProvisionError


def test_processes_are_known_by_their_arguments(tmp_path: Path) -> None:
    uuid = uuid4()
    identity = UmlIdentity(uuid, tmp_path)
    frames = str(Slirp(tmp_path).frames).encode()
    assert identity.matches([b"/x/linux", b"mem=1M", f"testbed.uuid={uuid}".encode()])
    assert identity.matches([b"slirp4netns", frames])
    assert not identity.matches([b"/x/linux", f"testbed.uuid={uuid4()}".encode()])
    assert not identity.matches([b"slirp4netns", b"/elsewhere/bess.sock"])


def test_a_directory_without_a_machine(tmp_path: Path) -> None:
    assert attach_uml(tmp_path) is None
    assert not destroy_uml(tmp_path)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = UmlState(tmp_path / "machine")
    state.make()
    try:
        record = UmlRecord("m", uuid4(), ("it panicked",))
        state.write_uml_record(record)
        assert state.read_uml_record() == record
    finally:
        assert destroy_uml(state.directory)
    assert state.read_uml_record() is None


def test_the_disk_is_the_last_resort_for_memory(tmp_path: Path) -> None:
    places = provide._memory_places(UmlState(tmp_path))
    assert places[0] == Path("/dev/shm")
    assert tmp_path in places


def test_a_kernel_that_may_not_be_run_is_named(tmp_path: Path) -> None:
    refused = pytest.raises(ProvisionError, match=f"cannot be run from {tmp_path}.*denied")
    with refused, provide._refusal_named(tmp_path / "linux"):
        raise PermissionError(13, "Permission denied")


def test_memory_has_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provide, "_memory_places", lambda _: (tmp_path,))
    record = UmlRecord("m", uuid4())
    with provide._own_place(record, 1, UmlState(tmp_path)) as own:
        assert own.parent == tmp_path
        assert own.stat().st_mode & 0o777 == 0o700
    assert not own.exists()


def test_what_a_killed_start_leaves_of_memory_goes_with_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, directory = tmp_path / "shm", tmp_path / "machine"
    place.mkdir()
    monkeypatch.setattr(provide, "_memory_places", lambda _: (place,))
    state = UmlState(directory)
    state.make()
    record = UmlRecord("m", uuid4())
    state.write_uml_record(record)
    # As if who started it had been killed within the context.
    never_left = provide._own_place(record, 1, state)
    never_left.__enter__()
    assert list(place.iterdir())
    assert provide.destroy_uml(directory)
    assert not list(place.iterdir())


def test_the_machine_sees_its_shared_directory_alone() -> None:
    shared = Path("/run/shared")
    assert provide._shared_options(shared, None) == ["hostfs=/run/shared", "testbed.shared=/"]
    assert provide._shared_options(shared, Path("/")) == ["testbed.shared=/run/shared"]


@pytest.mark.parametrize("answer", [{"return": {"id": 1}}, {"error": {"desc": "in use"}}, None])
def test_a_port_is_asked_for(tmp_path: Path, answer: object) -> None:
    asked: list[dict[str, object]] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "api.sock"))
        server.listen(1)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                asked.append(json.loads(b"".join(iter(lambda: connection.recv(100), b""))))
                connection.sendall(json.dumps(answer).encode() if answer else b"not json")

        thread = threading.Thread(target=serve)
        thread.start()
        if answer is None:
            with pytest.raises(ProvisionError, match="does not answer"):
                Slirp(tmp_path).forward(2222)
        else:
            assert Slirp(tmp_path).forward(2222) is ("return" in answer)  # type: ignore[operator]
        thread.join()
    assert asked[0]["execute"] == "add_hostfwd"
    assert asked[0]["arguments"]["host_port"] == 2222  # type: ignore[index]


@pytest.mark.skipif(not shutil.which("slirp4netns"), reason="needs slirp4netns")
def test_a_connection_comes_in_although_slirp_is_confined(tmp_path: Path) -> None:
    directory = Path(tempfile.mkdtemp(prefix="sdt-", dir="/tmp"))
    slirp = Slirp(directory)
    try:
        slirp.start()
        with slirp.connect() as machine:
            machine.settimeout(10)
            port = claim_port(0)
            assert slirp.forward(port)
            with socket.create_connection(("127.0.0.1", port), 10):
                # It asks who has the machine's address before it passes the connection on.
                frames = [machine.recv(2000) for _ in range(2)]
        assert any(b"\x08\x06\x00\x01\x08\x00" in frame for frame in frames)
    finally:
        end_processes(UmlIdentity(uuid4(), directory))
        shutil.rmtree(directory)
