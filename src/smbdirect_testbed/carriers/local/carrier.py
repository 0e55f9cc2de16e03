"""The carrier ``local`` as one of the carriers there are."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from smbdirect_testbed.carriers.carrier import Carrier, MachineParts
from smbdirect_testbed.carriers.local.provide import (
    LocalMachine,
    attach_local,
    destroy_local,
    destroy_local_stray,
    local_machine,
)
from smbdirect_testbed.config.spec import DriverSpec, EnvironmentSpec, KernelSpec
from smbdirect_testbed.image.image import Image
from smbdirect_testbed.kernel.built_driver import BuiltDriver
from smbdirect_testbed.kernel.running import RunningKernel
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.progress import Progress


class LocalCarrier(Carrier[RunningKernel]):
    """This computer's own kernel."""

    own_kernel = False

    def require_possible(self, spec: EnvironmentSpec) -> None:
        # psutil, which it looks with, takes its time to import.
        from smbdirect_testbed.carriers.local.checks import require_computer

        require_computer(spec, RunningKernel())

    def provide_kernel(
        self, driver: DriverSpec, options: KernelSpec, image: Image, progress: Progress
    ) -> RunningKernel:
        return RunningKernel()

    def provide_driver(
        self, driver: DriverSpec, image: Image, kernel: RunningKernel, progress: Progress
    ) -> BuiltDriver:
        from smbdirect_testbed.kernel.installed_driver import provide_local_driver

        return provide_local_driver(driver, image, progress, kernel)

    def started(
        self, parts: MachineParts[RunningKernel], progress: Progress, *, keep: bool
    ) -> AbstractContextManager[LocalMachine]:
        assert parts.driver  # what it may unload at the end is noted before the start
        return local_machine(
            *(parts.name, parts.image, parts.kernel, parts.directory, progress),
            driver=parts.driver,
            own_network=parts.own_network,
            keep=keep,
        )

    def attach(self, name: str, directory: Path) -> LocalMachine:
        if machine := attach_local(directory):
            return machine
        raise ProvisionError(f"there is no machine {name} in {directory}")

    def destroy(self, name: str, directory: Path) -> None:
        destroy_local(directory)

    def destroy_strays(self) -> list[Path]:
        return destroy_local_stray()
