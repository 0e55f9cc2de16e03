"""Which options a User Mode Linux is built with."""

from __future__ import annotations

from pathlib import Path

import pytest

from smbdirect_testbed.kernel.uml_config import UmlConfig
from smbdirect_testbed.lib import paths


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UmlConfig:
    (tmp_path / "uml").mkdir()
    base = "# A comment.\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_M=m\n"
    (tmp_path / "uml/base.config").write_text(base)
    (tmp_path / "uml/mine.config").write_text("# CONFIG_B is not set\nCONFIG_C=7\n")
    monkeypatch.setattr(paths, "images", lambda: tmp_path)
    return UmlConfig("mine")


def test_a_fragment_comes_on_top(config: UmlConfig) -> None:
    assert config.text == "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_M=m\nCONFIG_C=7\n"
    assert UmlConfig().text == "CONFIG_A=y\nCONFIG_B=y\nCONFIG_M=m\n"
    assert paths.kernel_fragments() == ["mine"]


@pytest.mark.parametrize(
    ("got", "dropped"),
    [
        ("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_M=m\nCONFIG_C=7\n", []),
        # What is off need not be mentioned; what is asked for as a module may be built in.
        ("CONFIG_A=y\nCONFIG_M=y\nCONFIG_C=7\n", []),
        ("CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=7\n", ["# CONFIG_B is not set", "CONFIG_M=m"]),
        ("# CONFIG_A is not set\nCONFIG_M=m\nCONFIG_C=8\n", ["CONFIG_A=y", "CONFIG_C=7"]),
    ],
)
def test_what_the_kernel_dropped(config: UmlConfig, got: str, dropped: list[str]) -> None:
    assert config.dropped(got) == dropped
