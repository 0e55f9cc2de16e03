"""Links between machines."""

from __future__ import annotations

import dataclasses
import os
import socket

import pytest

from smbdirect_testbed.carriers.machine_links import dead_ends, links_between_machines
from smbdirect_testbed.config.envfile import load_environment


def test_links_within_a_machine_need_none() -> None:
    with links_between_machines(load_environment("uml-rxe")) as links:
        assert links == {"machine": ()}


def test_both_ends_are_one_wire_for_whole_frames() -> None:
    spec = load_environment("uml-siw")
    with links_between_machines(spec) as links:
        assert [len(links[name]) for name in ("client", "server", "kserver")] == [2, 1, 1]
        to_server, to_kserver = links["client"]
        (server,), (kserver,) = links["server"], links["kserver"]
        assert len({w.mac for w in (to_server, to_kserver, server, kserver)}) == 4
        assert to_server.mtu == spec.links[0].mtu
        assert (to_server.far, server.far) == (server.descriptor, to_server.descriptor)
        os.write(to_server.descriptor, b"x" * 9000)
        os.write(to_server.descriptor, b"y")
        assert os.read(server.descriptor, 20000) == b"x" * 9000
        assert os.read(server.descriptor, 20000) == b"y"
        descriptors = [w.descriptor for ends in links.values() for w in ends]
    for descriptor in descriptors:
        try:
            socket.socket(fileno=os.dup(descriptor)).close()
        except OSError:
            continue
        raise AssertionError("a link outlived its context")


def test_what_goes_into_a_dead_end_is_lost_and_nothing_comes_out() -> None:
    with (
        links_between_machines(load_environment("siw")) as links,
        dead_ends(links["client"]) as dead,
    ):
        assert [(e.mac, e.mtu) for e in dead] == [(e.mac, e.mtu) for e in links["client"]]
        assert {e.descriptor for e in dead}.isdisjoint(e.descriptor for e in links["client"])
        with pytest.raises(ConnectionRefusedError):
            os.write(dead[0].descriptor, b"x")
        # Not even an end: it would be read again and again.
        os.set_blocking(dead[0].descriptor, False)
        with pytest.raises(BlockingIOError):
            os.read(dead[0].descriptor, 10)


def test_a_wire_keeps_what_the_other_end_does_not_take_yet() -> None:
    with links_between_machines(load_environment("siw")) as links:
        (server,), (to_server, _) = links["server"], links["client"]
        for _ in range(256):
            os.write(to_server.descriptor, b"x" * 100)
        assert {len(os.read(server.descriptor, 20000)) for _ in range(256)} == {100}


def test_an_end_in_a_namespace_of_a_shared_machine() -> None:
    spec = load_environment("rxe-two-machines")
    with links_between_machines(spec) as links:
        assert {name: len(ends) for name, ends in links.items()} == {"client": 2, "server": 2}


def test_the_part_of_a_spec_on_one_machine() -> None:
    spec = load_environment("uml-siw")
    assert spec.machines == ("client", "server", "kserver")
    assert all(spec.crosses(link) for link in spec.links)
    part = spec.part_on("server")
    assert [h.name for h in part.hosts] == ["server"]
    assert part.links == ()
    assert [s.host for s in part.servers] == ["server"]
    assert dataclasses.replace(part, hosts=spec.hosts).machines == spec.machines
