"""The carrier ``vm`` as one of the carriers there are."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from smbdirect_testbed.carriers.carrier import Carrier, MachineParts
from smbdirect_testbed.carriers.vm.strays import destroy_vm_strays
from smbdirect_testbed.config.spec import DriverSpec, KernelSpec
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.kernel.build import provide_driver
from smbdirect_testbed.kernel.built_driver import BuiltDriver
from smbdirect_testbed.lib.progress import Progress

if TYPE_CHECKING:
    from smbdirect_testbed.carriers.vm.provide import VmMachine

# Whatever needs libvirt is imported when there is a virtual machine: every command looks here for
# what killed runs left behind.


class VmCarrier(Carrier[None]):
    """Virtual machines with the image's own kernel, cloned from templates."""

    at_once = 2
    """Measured on two processors: one more is of no use."""
    clones = True

    def is_soon(self, image: Image, options: KernelSpec) -> bool:
        return True

    def provide_kernel(
        self, driver: DriverSpec, options: KernelSpec, image: Image, progress: Progress
    ) -> None:
        return None

    def provide_driver(
        self, driver: DriverSpec, image: Image, kernel: None, progress: Progress
    ) -> BuiltDriver:
        return provide_driver(driver, image, progress)

    def started(
        self, parts: MachineParts[None], progress: Progress, *, keep: bool
    ) -> AbstractContextManager[VmMachine]:
        from smbdirect_testbed.carriers.vm.provide import vm_machine

        return vm_machine(
            *(parts.name, parts.image, parts.spec, parts.directory, progress),
            keep=keep,
            plan=parts.template,
            links=parts.links,
        )

    def attach(self, name: str, directory: Path) -> VmMachine:
        from smbdirect_testbed.carriers.vm.provide import attach_vm

        return attach_vm(name, directory)

    def destroy(self, name: str, directory: Path) -> None:
        from smbdirect_testbed.carriers.vm.provide import destroy_vm

        destroy_vm(name, directory)

    def destroy_strays(self) -> list[Path]:
        return destroy_vm_strays()
