"""Kernel modules, loaded mostly without insmod(8) and modprobe(8): starting these takes longer."""

from __future__ import annotations

import errno
import os

from smbdirect_testbed.agent import kernel
from smbdirect_testbed.agent.commands import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smbdirect_testbed.agent.namespaces import Namespaces


def load(
    namespaces: Namespaces, needed: list[str], offered: str, directory: str, ours: list[str]
) -> dict[str, str]:
    """Load modules, unless they are loaded; return the notes with the build ids of ours.

    :param namespaces: for starting programs
    :param needed: names of the kernel's own modules; with what these depend on
    :param offered: a directory with the driver
    :param directory: gets a copy of that, unless it is there
    :param ours: names of modules in that directory, in the order to load them
    :returns: the notes in hexadecimal, by name, of those that are loaded
    """
    if not os.path.isdir(directory):
        _copy(offered, directory)
    if not all(map(_is_loaded, ours)):
        files = _files(needed)
        if all(file.endswith(".ko") for file in files):
            for file in files:
                _load(file)
        elif problem := Call(["modprobe", "--all", *needed], namespaces, 0).finish():
            # Compressed, as some distributions have them.
            raise OSError(problem)
        for name in ours:
            _load(f"{directory}/{name}.ko")
    return {name: note for name in ours if (note := _note(name))}


def _load(file: str) -> None:
    if _is_loaded(_name(file)):
        return

    def loaded() -> bool:
        try:
            kernel.load_module(file)
        except OSError as e:
            if e.errno == errno.ETXTBSY:
                # A process that another thread is starting has what was open when it was forked,
                # this file for being written among it, until it has become another program.
                return False
            if e.errno != errno.EEXIST:
                raise OSError(
                    f"module {_name(file)} cannot be loaded: {e.strerror} (see the kernel log)"
                ) from e
        return True

    kernel.wait(loaded, f"{file} not to be open for writing")


def _files(names: list[str]) -> list[str]:
    """The files of the kernel's own modules, each after those that it depends on."""
    base = f"/lib/modules/{os.uname().release}"
    files = {}
    for line in kernel.read(f"{base}/modules.dep").splitlines():
        file, _, others = line.partition(":")
        files[_name(file)] = [*reversed(others.split()), file]
    builtin = {_name(file) for file in kernel.read(f"{base}/modules.builtin").split()}
    found: dict[str, None] = {}
    for name in names:
        if name in files:
            found |= dict.fromkeys(files[name])
        elif name not in builtin:
            raise OSError(f"the kernel has no module {name}")
    return [f"{base}/{file}" for file in found]


def _name(file: str) -> str:
    return os.path.basename(file).partition(".")[0].replace("-", "_")


def _is_loaded(name: str) -> bool:
    return os.path.exists(f"/sys/module/{name}")


def _note(name: str) -> str:
    try:
        with open(f"/sys/module/{name}/notes/.note.gnu.build-id", "rb") as file:
            return file.read().hex()
    except FileNotFoundError:
        return ""


def _copy(source: str, target: str) -> None:
    os.makedirs(target)
    for name in os.listdir(source):
        with open(f"{source}/{name}", "rb") as old, open(f"{target}/{name}", "wb") as new:
            new.write(old.read())
            os.fchmod(new.fileno(), os.fstat(old.fileno()).st_mode & 0o777)
