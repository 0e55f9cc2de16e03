"""Finding a Debian mirror in apt's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from smbdirect_testbed.image import mirror
from smbdirect_testbed.image.mirror import Source, apt_sources, debian_mirror
from smbdirect_testbed.lib.errors import ProvisionError

DEB822 = """\
# made by an installer
Types: deb deb-src
URIs: http://mirror.example/debian/
Suites: trixie
 trixie-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://security.example/debian-security
Suites: trixie-security
Components: main
"""


@pytest.fixture(autouse=True)
def etc_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(mirror.VARIABLE, raising=False)
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_deb822(etc_apt: Path) -> None:
    (etc_apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    assert debian_mirror(etc_apt) == "http://mirror.example/debian"


def test_deb822_disabled(etc_apt: Path) -> None:
    text = DEB822.replace("Types: deb deb-src", "Types: deb\nEnabled: no")
    (etc_apt / "sources.list.d" / "debian.sources").write_text(text)
    with pytest.raises(ProvisionError):
        debian_mirror(etc_apt)


def test_one_line(etc_apt: Path) -> None:
    (etc_apt / "sources.list").write_text(
        "# deb http://old.example/debian bookworm main\n"
        "deb-src http://src.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] https://mirror.example/debian bookworm main contrib\n"
    )
    assert list(apt_sources(etc_apt)) == [
        Source("https://mirror.example/debian", ("bookworm",), ("main", "contrib"))
    ]
    assert debian_mirror(etc_apt) == "https://mirror.example/debian"


def test_vendors_repository_with_debians_suite_is_passed_over(etc_apt: Path) -> None:
    (etc_apt / "sources.list.d" / "a.list").write_text(
        "deb http://vendor.example/debian/12/prod bookworm main\n"
    )
    (etc_apt / "sources.list.d" / "b.list").write_text(
        "deb http://mirror.example/debian bookworm main\n"
    )
    assert debian_mirror(etc_apt) == "http://mirror.example/debian"


def test_mirror_list_of_cloud_images(etc_apt: Path) -> None:
    entries = etc_apt / "debian.list"
    entries.write_text("https://mirror.example/debian\n")
    (etc_apt / "sources.list").write_text(f"deb mirror+file:{entries} bookworm main\n")
    assert debian_mirror(etc_apt) == "https://mirror.example/debian"


def test_ubuntu_has_no_debian_mirror(etc_apt: Path) -> None:
    (etc_apt / "sources.list.d" / "ubuntu.sources").write_text(
        "Types: deb\nURIs: http://ubuntu.example/ubuntu\nSuites: noble noble-updates\n"
        "Components: main universe\n"
    )
    with pytest.raises(ProvisionError) as raised:
        debian_mirror(etc_apt)
    assert mirror.VARIABLE in (raised.value.hint or "")


def test_the_variable_comes_first(etc_apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (etc_apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    monkeypatch.setenv(mirror.VARIABLE, "http://other.example/debian/")
    assert debian_mirror(etc_apt) == "http://other.example/debian"


def test_the_variable_must_be_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mirror.VARIABLE, "mirror.example")
    with pytest.raises(ProvisionError, match=mirror.VARIABLE):
        debian_mirror()
