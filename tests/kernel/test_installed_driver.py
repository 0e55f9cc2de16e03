"""The driver for the running kernel: what is taken from where, and what is not to be had."""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from smbdirect_testbed.config.spec import DriverOrigin, DriverSpec
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel import installed_driver
from smbdirect_testbed.kernel.host_build import HostBuildRoot
from smbdirect_testbed.kernel.installed_driver import provide_local_driver
from smbdirect_testbed.kernel.running import RunningKernel
from smbdirect_testbed.lib.errors import CommandFailed, ProvisionError
from smbdirect_testbed.lib.progress import Progress

QUIET = Progress(quiet=True)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    release = "7.3.4-amd64"
    packages = {f"linux-image-{release}": "7.3.4-1"}
    file = tmp_path / "file"
    return Image(read_recipe("trixie"), "digest", tmp_path, file, file, file, release, packages)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMBDIRECT_TESTBED_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> DriverSpec:
    directory = tmp_path / "linux"
    for part in ("client", "common", "server", "smbdirect", "Makefile"):
        (directory / "fs/smb" / part).mkdir(parents=True)
    return DriverSpec(origin=DriverOrigin.TREE, path=directory)


def test_the_image_s_own_kernel_has_the_image_s_driver(
    image: Image, tmp_path: Path, tree: DriverSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No headers are needed then."""
    as_for_vm = object()
    monkeypatch.setattr(installed_driver, "provide_driver", lambda *_: as_for_vm)
    other = RunningKernel(image.kernel_release, "#1 Debian 7.3.4-2", tmp_path)
    with pytest.raises(ProvisionError, match="nothing to build modules against"):
        provide_local_driver(tree, image, QUIET, other)
    same = dataclasses.replace(other, version="#1 SMP Debian 7.3.4-1 (2026-11-01)")
    assert provide_local_driver(tree, image, QUIET, same) is as_for_vm


def test_the_distribution_s_driver_is_of_its_own_kernel(image: Image, tmp_path: Path) -> None:
    kernel = RunningKernel("6.18.44", "#1", tmp_path)
    with pytest.raises(ProvisionError, match=r"that of kernel 7\.3\.4-amd64, .* runs 6\.18\.44"):
        provide_local_driver(DriverSpec(), image, QUIET, kernel)


def test_modules_are_unpacked(tmp_path: Path) -> None:
    packed = {"": b"module", ".xz": lzma.compress(b"module"), ".gz": gzip.compress(b"module")}
    for ending, content in packed.items():
        file = tmp_path / f"m.ko{ending}"
        file.write_bytes(content)
        assert installed_driver._content(file) == b"module"
    if shutil.which("zstd"):
        subprocess.run(["zstd", "-q", tmp_path / "m.ko"], check=True)
        assert installed_driver._content(tmp_path / "m.ko.zst") == b"module"


def test_the_source_of_the_installed_module_is_not_there(tmp_path: Path) -> None:
    kernel = RunningKernel("7.3.4", "#1", tmp_path)
    with pytest.raises(ProvisionError, match="does not lead to the source of smbdirect"):
        installed_driver._smbdirect_source(kernel)
    (tmp_path / "source/fs/smb/smbdirect").mkdir(parents=True)
    (tmp_path / "source/fs/smb/smbdirect/internal.h").touch()
    assert installed_driver._smbdirect_source(kernel) == PurePosixPath(
        tmp_path, "source", "fs/smb/smbdirect"
    )


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    (tmp_path / "headers/scripts").mkdir(parents=True)
    return tmp_path / "headers"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Of an asn1_compiler that only says its name."""
    (tmp_path / "source/scripts").mkdir(parents=True)
    (tmp_path / "source/scripts/asn1_compiler.c").write_text(
        '#include <stdio.h>\nint main(void) { return puts("asn1") < 0; }\n'
    )
    return tmp_path / "source"


def test_no_compiler(headers: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ProvisionError, match="no gcc on this computer"):
        HostBuildRoot(headers, source)


def test_headers_get_what_they_lack_for_as_long_as_a_command_runs(
    headers: Path, source: Path
) -> None:
    try:
        subprocess.run(["unshare", "--mount", "true"], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        pytest.skip("needs root that may mount")
    root = HostBuildRoot(headers, source)
    compiler = headers / "scripts/asn1_compiler"
    assert root.run([str(compiler)]).stdout == "asn1\n"
    assert not compiler.exists()
    compiler.write_text("#!/bin/sh\necho theirs\n")
    compiler.chmod(0o755)
    assert root.run([str(compiler)]).stdout == "theirs\n"


def test_files_go_in_and_out(headers: Path, source: Path, tmp_path: Path) -> None:
    (headers / "scripts/asn1_compiler").touch()
    root = HostBuildRoot(headers, source)
    with root.work_directory("x", QUIET) as work:
        root.put({work / "source": source})
        made = work / "made"
        root.run(["cp", f"{work}/source/scripts/asn1_compiler.c", str(made)])
        assert root.holds(made)
        root.take({made: tmp_path / "out"})
        with pytest.raises(CommandFailed):
            root.run(["false"])
    assert "asn1" in (tmp_path / "out").read_text()
    assert not root.holds(work)
