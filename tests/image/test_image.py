"""Images, with mmdebstrap replaced by what its hooks would leave behind."""

from __future__ import annotations

import shlex
import tarfile
from pathlib import Path

import pytest

from smbdirect_testbed.image import image
from smbdirect_testbed.image.image import provide_image
from smbdirect_testbed.image.mmdebstrap import Bootstrap
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.progress import Progress


class Bootstraps:
    """What was asked of mmdebstrap.

    :param calls: one for each image built
    :param names: name, owner and mode of the files given to the newest
    """

    def __init__(self) -> None:
        self.calls: list[Bootstrap] = []
        self.names: dict[str, tuple[int, int]] = {}

    def __call__(self, what: Bootstrap, log: Path, progress: Progress) -> None:
        self.calls.append(what)
        with tarfile.open(shlex.split(what.hooks[0])[1]) as tar:
            self.names = {m.name: (m.uid, m.mode) for m in tar.getmembers()}
        out = Path(shlex.split(what.hooks[2])[2]) / "out"
        out.mkdir()
        for name in ("root.erofs", "vmlinuz", "initramfs"):
            (out / name).write_bytes(b"x")
        (out / "kernel-release").write_text("7.3.4-amd64\n")
        version = len(self.calls)
        (out / "packages").write_text(f"linux-image-7.3.4-amd64 7.3.4-{version}\nsamba 2:4.24\n")


@pytest.fixture
def bootstraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bootstraps:
    monkeypatch.setenv("SMBDIRECT_TESTBED_CACHE", str(tmp_path / "cache"))
    made = Bootstraps()
    monkeypatch.setattr(image, "bootstrap_nothing", made)
    monkeypatch.setattr(image, "_IMAGE_GIB", 0.0)
    return made


def test_an_image(bootstraps: Bootstraps) -> None:
    made = provide_image(read_recipe("trixie"), Progress(quiet=True))
    assert made.kernel_release == "7.3.4-amd64"
    assert made.kernel_version == "7.3.4-1"
    assert made.packages["samba"] == "2:4.24"
    assert sorted(p.name for p in made.directory.iterdir()) == [
        "image.json",
        "initramfs",
        "root.erofs",
        "vmlinuz",
    ]
    assert bootstraps.names["usr/lib/smbdirect-testbed/init"] == (0, 0o755)
    assert bootstraps.names["etc/ssh/sshd_config"] == (0, 0o644)


def test_it_is_built_once(bootstraps: Bootstraps) -> None:
    first = provide_image(read_recipe("trixie"), Progress(quiet=True))
    assert provide_image(read_recipe("trixie"), Progress(quiet=True)) == first
    assert len(bootstraps.calls) == 1


def test_a_refresh_with_newer_packages_is_another_image(bootstraps: Bootstraps) -> None:
    first = provide_image(read_recipe("trixie"), Progress(quiet=True))
    second = provide_image(read_recipe("trixie"), Progress(quiet=True), force=True)
    assert len(bootstraps.calls) == 2
    assert second.kernel_version == "7.3.4-2"
    assert second.digest != first.digest


def test_no_space(bootstraps: Bootstraps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_IMAGE_GIB", 1e9)
    with pytest.raises(ProvisionError, match="image trixie needs"):
        provide_image(read_recipe("trixie"), Progress(quiet=True))
    assert bootstraps.calls == []
