"""Installing Debian packages into a new directory tree, with mmdebstrap."""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from smbdirect_testbed.image import mirror
from smbdirect_testbed.lib import cache, process
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.process import kill_group
from smbdirect_testbed.lib.progress import Progress

_UNPACKED_GIB = 2.0
_STOP_SECONDS = 20
_TEMPORARY = Path("/var/tmp")
_PREFIX = "smbdirect-testbed-"
_YOUNG_SECONDS = 60
"""Younger directories are left alone: between making one and holding it there is a moment."""

_PINNED = """\
Package: *
Pin: release n={suite}
Pin-Priority: 500
"""
_NOT_REACHED = (
    "Could not resolve",
    "Temporary failure resolving",
    "Could not connect",
    "Connection failed",
    "Connection timed out",
    "Cannot initiate the connection",
    "Unable to connect",
    "Could not handshake",
    "Certificate verification failed",
    "Failed to fetch",
    "does not have a Release file",
)
_MISSING = re.compile(
    r"E: (?:Unable to locate package|Version '[^']*' for|Package) '?([a-z0-9][a-z0-9.+-]*)"
)
_EXCLUDED = (
    "/usr/share/man/*",
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/etc/kernel/postinst.d/*",
)


class PackageMissing(ProvisionError):
    """The archive does not have a package, or not in the version asked for."""

    def __init__(self, package: str, log: Path) -> None:
        super().__init__(
            f"the Debian archive has no package {package}", hint=f"the full log is {log}"
        )
        self.package = package


@dataclass(frozen=True)
class Bootstrap:
    """The packages to install.

    :param suites: a Debian suite; further ones, as backports, whose packages are preferred
    :param packages: names, or ``name=version``
    :param hooks: mmdebstrap's customize hooks: they run once the packages are installed
    """

    suites: tuple[str, ...]
    packages: tuple[str, ...]
    hooks: tuple[str, ...] = ()


def hook(*words: str | Path) -> str:
    """A hook for mmdebstrap from its words; paths on this computer must be absolute."""
    return shlex.join(str(w) for w in words)


def bootstrap_nothing(what: Bootstrap, log: Path, progress: Progress) -> None:
    """Install packages, and keep only what the hooks copy out.

    :param log: gets the output of mmdebstrap
    :raises ProvisionError: it failed, with the reason
    """
    with _temporary_directory() as temporary:
        _run(_argv(what, "null", "-"), temporary, log, progress, stdout=subprocess.DEVNULL)


def bootstrap_directory(what: Bootstrap, target: Path, log: Path, progress: Progress) -> None:
    """Install into a new directory that belongs to this user.

    :raises ProvisionError: it failed, with the reason
    """
    if _is_root():
        with _temporary_directory() as temporary:
            argv = _argv(what, "directory", os.fspath(target))
            _run(argv, temporary, log, progress, stdout=subprocess.DEVNULL)
        return
    target.mkdir()
    # An ordinary user owns all unpacked files, and cannot unpack device nodes.
    tar = ["tar", "-x", "--no-same-owner", "--exclude=./dev/*", "-C", os.fspath(target)]
    with _temporary_directory() as temporary:
        unpack = subprocess.Popen(tar, stdin=subprocess.PIPE, start_new_session=True)
        try:
            assert unpack.stdin is not None
            _run(_argv(what, "tar", "-"), temporary, log, progress, stdout=unpack.stdin)
            unpack.stdin.close()
            if unpack.wait() != 0:
                raise ProvisionError(f"cannot unpack into {target}: tar failed")
        except BaseException:
            kill_group(unpack)
            unpack.wait()
            raise


def _argv(what: Bootstrap, output: str, target: str) -> list[str]:
    address = mirror.debian_mirror()
    options = [
        'Acquire::Languages "none"',
        'Acquire::http::Timeout "20"',
        'Acquire::https::Timeout "20"',
        'APT::Install-Recommends "false"',
        *mirror.apt_options(),
    ]
    setup = ['cd "$1" && mkdir -p etc/apt/preferences.d etc/dpkg/dpkg.cfg.d etc/kernel/postinst.d']
    for suite in what.suites[1:]:
        pin = shlex.quote(_PINNED.format(suite=suite))
        setup.append(f"printf %s {pin} > etc/apt/preferences.d/{suite}")
    # Making an initrd takes half a minute, and nothing uses it.
    for generator in ("dracut", "initramfs-tools"):
        setup.append(f"ln -s /bin/true etc/kernel/postinst.d/{generator}")
    # As options to mmdebstrap, they would send every package of the base system through a filter.
    excluded = shlex.join(f"path-exclude={path}" for path in _EXCLUDED)
    setup.append(f"printf '%s\\n' {excluded} > etc/dpkg/dpkg.cfg.d/excluded")
    return [
        *_private_mounts(),
        "mmdebstrap",
        f"--mode={'root' if _is_root() else 'unshare'}",
        "--variant=apt",
        f"--format={output}",
        "--components=main",
        f"--keyring={mirror.keyring()}",
        *(f"--aptopt={option}" for option in options),
        "--dpkgopt=force-unsafe-io",
        f"--setup-hook={' && '.join(setup)}",
        *(f"--customize-hook={hook}" for hook in what.hooks),
        f"--include={','.join(what.packages)}",
        what.suites[0],
        target,
        *(f"deb {address} {suite} main" for suite in what.suites),
    ]


@functools.cache
def _private_mounts() -> tuple[str, ...]:
    """A prefix for mmdebstrap: with it, mmdebstrap and its mounts end with this process.

    It is empty for an ordinary user, whose mmdebstrap mounts in a namespace anyway, and where root
    may not mount: there, mmdebstrap does without mounts.
    """
    argv = ["setpriv", "--pdeathsig", "KILL"]
    argv += ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    may_mount = _is_root() and process.run([*argv, "true"], check=False, timeout=30).ok
    return tuple(argv) if may_mount else ()


def _run(
    argv: Sequence[str], temporary: Path, log: Path, progress: Progress, stdout: IO[bytes] | int
) -> None:
    """Run mmdebstrap. On any exception it is stopped and removes its files."""
    lines: deque[str] = deque(maxlen=400)
    proc = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": os.fspath(temporary), "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    )
    try:
        assert proc.stderr is not None
        with log.open("a") as f:
            for raw in proc.stderr:
                line = raw.decode(errors="replace")
                f.write(line)
                lines.append(line.rstrip())
                if step := _step(line):
                    progress.say(f"  {step}")
        status = proc.wait()
    except BaseException:
        _stop(proc)
        raise
    if status != 0:
        raise _failure(lines, temporary, log)


def _step(line: str) -> str | None:
    """The user's version of a line of mmdebstrap."""
    steps = {
        "I: downloading packages": "downloading packages",
        "I: extracting archives": "installing the base system",
        "I: installing remaining packages": "installing packages",
    }
    return next((text for start, text in steps.items() if line.startswith(start)), None)


def _stop(proc: subprocess.Popen[bytes]) -> None:
    """Stop mmdebstrap as Ctrl-C on a terminal does; then it removes its directory."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(proc.pid, signal.SIGINT)
        # Its pipe must be read to the end, or its last messages block it.
        proc.communicate(timeout=_STOP_SECONDS)
    kill_group(proc)
    proc.wait()


def _failure(lines: Sequence[str], temporary: Path, log: Path) -> ProvisionError:
    text = "\n".join(lines)
    if "No space left on device" in text:
        return cache.disk_full(temporary)
    if missing := _MISSING.search(text):
        return PackageMissing(missing[1], log)
    if any(reason in text for reason in _NOT_REACHED):
        return ProvisionError(
            f"cannot get packages from the Debian mirror that {mirror.origin()}",
            hint=f"check the network, or set {mirror.VARIABLE}; the full log is {log}",
        )
    if "failed to unshare the user namespace" in text:
        return ProvisionError(
            "this user cannot build an image: no user namespace with a map of ids can be made",
            hint="run as root, or see smbdirect-testbed doctor",
            detail="\n".join(line for line in lines if "idmap" in line),
        )
    errors = [line for line in lines if line.startswith(("E: ", "W: ", "dpkg: error"))]
    return ProvisionError(
        "mmdebstrap could not install the packages",
        hint=f"the full log is {log}",
        detail="\n".join(errors[-10:] or lines[-10:]),
    )


def _is_root() -> bool:
    return os.geteuid() == 0


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    """A directory for mmdebstrap, accessible to the user ids of its namespace."""
    remove_leftovers()
    cache.require_space(_TEMPORARY, _UNPACKED_GIB, "installing packages")
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_TEMPORARY))
    with _held(directory):
        try:
            directory.chmod(0o755)
            yield directory
        finally:
            _remove(directory)


def remove_leftovers() -> None:
    """Remove directories of mmdebstrap that killed runs of this user left."""
    for directory in _TEMPORARY.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            status = directory.stat()
            old = time.time() - status.st_mtime > _YOUNG_SECONDS
            if old and status.st_uid == os.geteuid():
                with _held(directory):
                    _remove(directory)


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Mark a directory as in use for as long as this process lives.

    :raises BlockingIOError: another process uses it
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove(directory: Path) -> None:
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if any(m.split()[4].startswith(f"{directory}/") for m in mounts):
        # Not ours (see _private_mounts). Removing would descend into the mounted file systems.
        return
    if any(directory.iterdir()) and not _is_root():
        # The files belong to user ids of a namespace that no longer exists.
        argv = ["mmdebstrap", "--unshare-helper", "rm", "-rf"]
        argv += [os.fspath(p) for p in directory.iterdir()]
        process.run(argv, check=False, timeout=120)
    cache.remove(directory)
