"""The driver in a machine: our modules loaded in order, checked, and unloaded."""

from __future__ import annotations

import shutil
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from smbdirect_testbed.errors import ProvisionError
from smbdirect_testbed.machine import Machine

if TYPE_CHECKING:
    from smbdirect_testbed.driver.build import BuiltDriver

_DISTRIBUTION_MODULES = ("rdma_rxe", "rdma_ucm", "ib_uverbs", "ib_umad")
"""Loaded besides ours: the RoCEv2 device and what userspace needs for verbs."""

# Prints "NAME BUILD-ID" for every module of the arguments that is loaded. The note is 16 bytes of
# header (name size, descriptor size, type, "GNU\0") and then the build id.
_LOADED_SCRIPT = """
for m in "$@"; do
    note=/sys/module/$m/notes/.note.gnu.build-id
    [ -e "$note" ] && echo "$m $(tail -c +17 "$note" | od -An -tx1 -v | tr -d ' \\n')"
done
exit 0
"""

# Distribution modules that ours need come by modprobe; ours by insmod, from our build.
_LOAD_SCRIPT = """
directory=$1; shift
for m in "$@"; do
    [ -e /sys/module/$m ] && continue
    file=$directory/$m.ko
    needs=$(modinfo -F depends "$file" | tr , ' ')
    for n in $needs; do
        [ -e /sys/module/$n ] || [ -e "$directory/$n.ko" ] || modprobe "$n" || exit 1
    done
    insmod "$file" || exit 1
done
"""


class LoadedDriver:
    """The modules of a built driver in one machine.

    :param built: what was built, with the load order
    """

    def __init__(self, machine: Machine, built: BuiltDriver) -> None:
        self.built = built
        self._machine = machine
        here = machine.shared.here / "driver"
        shutil.copytree(built.directory, here, dirs_exist_ok=True)
        self.directory: PurePosixPath = machine.shared.path_there(here)

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
        self._machine.run(["modprobe", "--all", *_DISTRIBUTION_MODULES])
        self._machine.run(["sh", "-c", _LOAD_SCRIPT, "load", str(self.directory), *self.names])
        self.check()

    def check(self) -> None:
        """Raise :class:`ProvisionError` unless every module is loaded and of our build."""
        loaded = self.loaded()
        for module in self.built.modules:
            if module.name not in loaded:
                raise ProvisionError(f"module {module.name} is not loaded")
            if loaded[module.name] != module.build_id:
                raise ProvisionError(
                    f"module {module.name} is loaded, but not the one that was built: "
                    f"build id {loaded[module.name]} instead of {module.build_id}"
                )

    def unload(self) -> None:
        """Unload our modules in the opposite order.

        :raises CommandFailed: one of them is in use
        """
        loaded = self.loaded()
        self._machine.run(["rmmod", *(n for n in reversed(self.names) if n in loaded)])

    def loaded(self) -> dict[str, str]:
        """The build ids (hexadecimal) of those of our modules that are loaded, by name."""
        out = self._machine.run(["sh", "-c", _LOADED_SCRIPT, "loaded", *self.names]).stdout
        return dict(line.split() for line in out.splitlines())
