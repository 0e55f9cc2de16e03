"""The directory, with a short path, for sockets and keys of this user's machines.

It is below ``/tmp``, where all users may make things: so another user may have taken its name. Then
it has one that nobody could guess, which is kept where only this user writes.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import platformdirs

from smbdirect_testbed.lib.errors import ProvisionError

_TMP = Path("/tmp")


def runtime_base() -> Path:
    """The directory; it need not exist."""
    other = _other()
    return other if other and _is_ours(other) else _usual()


def make_runtime_base() -> Path:
    """The directory, which is made if it does not exist.

    :raises ProvisionError: it cannot be made, or others can write to it
    """
    base = runtime_base()
    try:
        base.mkdir(mode=0o700, exist_ok=True)
        if _is_taken(base):
            base = _make_other()
    except FileExistsError:
        # A file, or a link to nothing.
        base = _make_other()
    except OSError as e:
        raise ProvisionError(
            f"cannot make {base}: {e.strerror}", hint="machines need a writable /tmp for sockets"
        ) from e
    if not _is_ours(base):
        raise ProvisionError(
            f"{base} is not a directory of this user alone", hint=f"remove {base} and try again"
        )
    base.chmod(0o700)
    return base


def _usual() -> Path:
    return _TMP / f"smbdirect-testbed-{os.geteuid()}"


def _other() -> Path | None:
    """The one in place of the usual one, while that is another user's."""
    try:
        return Path(os.fsdecode(_note().read_bytes()))
    except OSError:
        return None


def _make_other() -> Path:
    made = tempfile.mkdtemp(prefix="sdt-", dir=_TMP)
    note = _note()
    note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = note.with_name(f".{note.name}.{os.getpid()}")
    new.write_bytes(os.fsencode(made))
    new.replace(note)
    return Path(made)


def _note() -> Path:
    return Path(platformdirs.user_data_dir("smbdirect-testbed")) / "runtime"


def _is_taken(base: Path) -> bool:
    found = base.lstat()
    return not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid()


def _is_ours(base: Path) -> bool:
    """Whether it is a directory of this user's that nobody else can write to."""
    try:
        return not _is_taken(base) and not base.lstat().st_mode & 0o22
    except FileNotFoundError:
        return False
