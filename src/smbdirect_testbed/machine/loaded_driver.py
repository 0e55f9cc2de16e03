"""The driver in a machine: our modules loaded in order, and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from smbdirect_testbed.config.rdma import RdmaType
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.machine.machine import Machine

if TYPE_CHECKING:
    from smbdirect_testbed.kernel.built_driver import BuiltDriver

_DISTRIBUTION_MODULES = (
    *(t.traits.module for t in RdmaType if not t.traits.source),
    *("rdma_ucm", "ib_uverbs", "ib_umad"),
)
"""Loaded besides ours: the kernel's own RDMA devices and what userspace needs for verbs."""

PREPARED = "driver"
"""In :attr:`Machine.prepared`: the digest of the driver that is there."""

_NOTE_HEADER = 16
_NOTE_SIZE = 36
"""Bytes of a build id's note: sizes, type and "GNU", and then the SHA-1."""

# Prints the names of those modules of the arguments that are loaded, then their notes in
# hexadecimal. One od for all: processes are what costs time under TCG.
_LOADED_SCRIPT = """
notes=
for m in "$@"; do
    note=/sys/module/$m/notes/.note.gnu.build-id
    [ -e "$note" ] && notes="$notes $note" && echo "$m"
done
[ -z "$notes" ] || exec od -An -v -tx1 -w36 $notes
"""

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def load_distribution_modules(machine: Machine) -> None:
    """Load what RDMA links need, without our driver."""
    machine.run(["modprobe", "--all", *_DISTRIBUTION_MODULES])


class LoadedDriver:
    """The modules of a built driver in one machine.

    ::

        assert driver.loaded() == {m.name: m.build_id for m in driver.built.modules}
        client.run([str(driver.launcher), "smbclient", "--version"])

    :param built: what was built, with the load order
    """

    def __init__(self, machine: Machine, built: BuiltDriver) -> None:
        self.built = built
        self._machine = machine
        self._offered = machine.shared.here / "driver"
        if machine.prepared.get(PREPARED) != built.digest:
            # Not the modules with lines of source: they are large, and of use here only.
            for file in sorted(p for p in built.directory.iterdir() if p.is_file()):
                machine.shared.files.put(file, Path(self._offered.name, file.name))
        # Not the shared directory: a machine that is to be a template must let go of that, and
        # programs have the preload library open.
        self.directory = PurePosixPath("/run/testbed-driver")

    @property
    def preload(self) -> PurePosixPath:
        """The preload library, in the machine."""
        return self.directory / self.built.preload.name

    @property
    def launcher(self) -> PurePosixPath:
        """``smbdirect-run``, in the machine."""
        return self.directory / self.built.launcher.name

    @property
    def names(self) -> list[str]:
        """Our modules in load order."""
        return [m.name for m in self.built.modules]

    def load(self) -> None:
        """Load what is not loaded, in order, and check that every module is of our build.

        :raises ProvisionError: a module did not load, or one of another build is in its place
        """
        needed = [*_DISTRIBUTION_MODULES, *self._needed_modules()]
        offered = self._machine.shared.path_there(self._offered)
        notes = self._machine.required_agent().load_modules(
            needed=needed, offered=offered, directory=self.directory, ours=self.names
        )
        self._check(_build_ids(notes))

    def check(self) -> None:
        """Raise :class:`ProvisionError` unless every module is loaded and of our build."""
        self._check(self.loaded())

    def _check(self, loaded: dict[str, str]) -> None:
        for module in self.built.modules:
            if module.name not in loaded:
                raise ProvisionError(f"module {module.name} is not loaded")
            if loaded[module.name] != module.build_id:
                raise ProvisionError(
                    f"module {module.name} is loaded, but not the one that was built: "
                    f"build id {loaded[module.name]} instead of {module.build_id}"
                )

    def loaded(self) -> dict[str, str]:
        """The build ids (hexadecimal) of those of our modules that are loaded, by name."""
        lines = self._machine.run(["sh", "-c", _LOADED_SCRIPT, "driver", *self.names]).stdout
        names = [line for line in lines.splitlines() if not line.startswith(" ")]
        notes = [line.replace(" ", "") for line in lines.splitlines() if line.startswith(" ")]
        return _build_ids(dict(zip(names, notes, strict=True)))

    def _needed_modules(self) -> list[str]:
        """Modules of the distribution that ours depend on, as their files say."""
        needed: dict[str, None] = {}
        for module in self.built.modules:
            if found := _DEPENDS.search(module.file.read_bytes()):
                needed |= dict.fromkeys(n for n in found[1].decode().split(",") if n)
        return [n for n in needed if n not in self.names]


def _build_ids(notes: Mapping[str, str]) -> dict[str, str]:
    """The build ids in notes, both in hexadecimal, by name."""
    for name, note in notes.items():
        if len(note) != 2 * _NOTE_SIZE:
            raise ProvisionError(f"the build id of module {name} is not understood: {note}")
    return {name: note[2 * _NOTE_HEADER :] for name, note in notes.items()}
