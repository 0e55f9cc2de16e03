"""Names that others may add to: each is one object, wherever it comes from."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest

from smbdirect_testbed.config.envfile import parse_environment
from smbdirect_testbed.config.kinds import CarrierKind, ServerKind
from smbdirect_testbed.config.rdma import BUILT, RdmaType
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import UsageError

RXE = (paths.environments() / "rxe.toml").read_text()


def test_there_is_one_object_for_each_name() -> None:
    here = "".join(["he", "re"])
    found = CarrierKind(here)
    assert found is CarrierKind("here")
    assert copy.deepcopy(found) is pickle.loads(pickle.dumps(found)) is found
    assert parse_environment(RXE, Path("x.toml")).carrier is CarrierKind.VM
    assert {ServerKind("vm").__class__, CarrierKind.VM.__class__} == {ServerKind, CarrierKind}


def test_it_is_a_plain_string_to_others() -> None:
    assert f"{ServerKind.SMBD}" == ServerKind.SMBD.value == "smbd"
    assert json.dumps({"kind": ServerKind.SMBD}) == '{"kind": "smbd"}'
    assert type(ServerKind.SMBD.value) is str


@pytest.mark.parametrize("name", ["VM", "a b", "../vm", "7"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match="carrier: string should match pattern"):
        parse_environment(RXE.replace('carrier = "vm"', f'carrier = "{name}"'), Path("x.toml"))


def test_rows_of_soft_rdma() -> None:
    assert [t.traits.module for t in RdmaType] == ["rdma_rxe", "siw"]
    text = RXE.replace('rdma = "rxe"', 'rdma = "siw"')
    assert parse_environment(text, Path("x.toml")).links[0].ends[0].rdma is RdmaType.SIW
    assert list(BUILT) == ["drivers/infiniband/sw/siw"]
