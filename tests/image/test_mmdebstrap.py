"""Running mmdebstrap: with a program in its place that behaves as it does."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from smbdirect_testbed.image import mirror, mmdebstrap
from smbdirect_testbed.image.mmdebstrap import Bootstrap, PackageMissing, bootstrap_nothing
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.progress import Progress

WHAT = Bootstrap(("trixie", "trixie-backports"), ("samba", "linux-image=1"))


class Fake:
    """A stand-in for mmdebstrap.

    :param temporary: where it makes its directories
    :param log: what it said
    """

    def __init__(self, directory: Path) -> None:
        self.temporary = directory / "var-tmp"
        self.temporary.mkdir()
        self.log = directory / "log"
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.argv = directory / "argv"

    def does(self, script: str) -> None:
        program = self.bin / "mmdebstrap"
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {self.argv}\n{script}\n')
        program.chmod(0o755)

    def run(self) -> None:
        bootstrap_nothing(WHAT, self.log, Progress(quiet=True))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    monkeypatch.setenv(mirror.VARIABLE, "http://mirror.example/debian")
    monkeypatch.setattr(mmdebstrap, "_TEMPORARY", made.temporary)
    monkeypatch.setattr(mmdebstrap, "_UNPACKED_GIB", 0.0)
    monkeypatch.setattr(mirror, "KEYRING", made.bin / "mmdebstrap")
    return made


def test_what_it_is_told(fake: Fake) -> None:
    fake.does('mkdir "$TMPDIR/x"')
    fake.run()
    argv = fake.argv.read_text().splitlines()
    assert "--include=samba,linux-image=1" in argv
    assert argv[-1] == "deb http://mirror.example/debian trixie-backports main"
    assert list(fake.temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "E: Could not connect to mirror.example:80 (192.0.2.1)",
            f"cannot get packages from the Debian mirror that {mirror.VARIABLE} names",
        ),
        ("dpkg: error: cannot write: No space left on device", "no space left on the disk"),
        (
            "E: failed to unshare the user namespace",
            "this user cannot build an image: no user namespace with a map of ids can be made",
        ),
        ("E: something else", "mmdebstrap could not install the packages"),
    ],
)
def test_failures_are_one_line(fake: Fake, said: str, message: str) -> None:
    fake.does(f"mkdir $TMPDIR/x; echo '{said}' >&2; exit 25")
    with pytest.raises(ProvisionError, match=message) as raised:
        fake.run()
    assert "\n" not in raised.value.message
    assert "mirror.example" not in f"{raised.value.message} {raised.value.hint}"
    assert list(fake.temporary.iterdir()) == []
    assert said in fake.log.read_text()


@pytest.mark.parametrize(
    "said",
    [
        "E: Unable to locate package linux-headers-7.3.4+deb13-amd64",
        "E: Version '7.3.4-1~bpo13+1' for 'linux-headers-7.3.4+deb13-amd64' was not found",
    ],
)
def test_a_package_that_is_gone(fake: Fake, said: str) -> None:
    fake.does(f'echo "{said}" >&2; exit 25')
    with pytest.raises(PackageMissing) as raised:
        fake.run()
    assert raised.value.package == "linux-headers-7.3.4+deb13-amd64"


def test_ctrl_c_gives_it_time_to_clean_up(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.does(
        f"trap 'echo cleaned >> {fake.argv}; exit 1' INT\n"
        "echo 'I: downloading packages with apt...' >&2\n"
        "while :; do sleep 0.05; done"
    )

    def interrupt(_self: Progress, _text: str) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Progress, "say", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fake.run()
    assert fake.argv.read_text().endswith("cleaned\n")
    assert list(fake.temporary.iterdir()) == []


def test_leftovers_of_killed_runs_are_removed(fake: Fake) -> None:
    old, young = (fake.temporary / f"smbdirect-testbed-{n}" for n in ("old", "young"))
    for directory in (old, young, fake.temporary / "other"):
        directory.mkdir()
    an_hour_ago = time.time() - 3600
    os.utime(old, (an_hour_ago, an_hour_ago))
    with mmdebstrap._held(old):
        mmdebstrap.remove_leftovers()
        assert old.is_dir(), "a living process uses it"
    mmdebstrap.remove_leftovers()
    assert sorted(p.name for p in fake.temporary.iterdir()) == ["other", "smbdirect-testbed-young"]
