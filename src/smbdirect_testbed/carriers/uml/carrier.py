"""The carrier ``uml`` as one of the carriers there are."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from smbdirect_testbed.carriers.carrier import Carrier, MachineParts
from smbdirect_testbed.carriers.machine_files import find_strays
from smbdirect_testbed.carriers.uml.provide import (
    UmlMachine,
    attach_uml,
    destroy_uml,
    uml_machine,
)
from smbdirect_testbed.config.spec import DriverSpec, KernelSpec
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.kernel import uml
from smbdirect_testbed.kernel.build import provide_driver
from smbdirect_testbed.kernel.built_driver import BuiltDriver
from smbdirect_testbed.kernel.prebuild import Ahead
from smbdirect_testbed.kernel.tree import is_full, watched_directories
from smbdirect_testbed.kernel.uml import UmlKernel
from smbdirect_testbed.kernel.uml_config import UmlConfig
from smbdirect_testbed.kernel.uml_from_tree import provide_kernel
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.progress import Progress


class UmlCarrier(Carrier[UmlKernel]):
    """User Mode Linux of the image's kernel version, or of the user's own tree.

    It has no templates: it boots in less time than a clone takes.
    """

    at_once = 3
    """Measured on two processors: two more are of no use."""
    ahead = Ahead.UML_KERNEL
    builds_kernel = True

    def is_soon(self, image: Image, options: KernelSpec) -> bool:
        return uml.is_cached(image, UmlConfig(options.config))

    def watched(self, tree: Path) -> list[Path]:
        return watched_directories(tree) if is_full(tree) else super().watched(tree)

    def provide_kernel(
        self, driver: DriverSpec, options: KernelSpec, image: Image, progress: Progress
    ) -> UmlKernel:
        return provide_kernel(driver, image, progress, UmlConfig(options.config))

    def provide_driver(
        self, driver: DriverSpec, image: Image, kernel: UmlKernel, progress: Progress
    ) -> BuiltDriver:
        return provide_driver(driver, image, progress, kernel)

    def started(
        self, parts: MachineParts[UmlKernel], progress: Progress, *, keep: bool
    ) -> AbstractContextManager[UmlMachine]:
        return uml_machine(
            *(parts.name, parts.image, parts.kernel, parts.spec, parts.directory, progress),
            keep=keep,
            links=parts.links,
        )

    def attach(self, name: str, directory: Path) -> UmlMachine:
        if machine := attach_uml(directory):
            return machine
        raise ProvisionError(f"there is no machine {name} in {directory}")

    def destroy(self, name: str, directory: Path) -> None:
        destroy_uml(directory)

    def destroy_strays(self) -> list[Path]:
        return [state.directory for state in find_strays() if destroy_uml(state.directory)]
