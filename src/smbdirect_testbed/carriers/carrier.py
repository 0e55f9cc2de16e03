"""A carrier: what a kind of machine needs, how one is started, found again and ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from smbdirect_testbed.kernel.prebuild import Ahead
from smbdirect_testbed.kernel.toolchain import SOURCE_PARTS

if TYPE_CHECKING:
    from smbdirect_testbed.carriers.machine_links import MachineLinkEnd
    from smbdirect_testbed.config.spec import DriverSpec, EnvironmentSpec, KernelSpec, MachineSpec
    from smbdirect_testbed.image.image import Image
    from smbdirect_testbed.kernel.built_driver import BuiltDriver
    from smbdirect_testbed.lib.progress import Progress
    from smbdirect_testbed.machine.machine import Machine


class Kernel(Protocol):
    """A kernel that is not the image's own."""

    @property
    def release(self) -> str:
        """As ``uname -r`` says it."""


K = TypeVar("K", bound=Kernel | None)


@dataclass(frozen=True)
class TemplatePlan:
    """How a booted machine is turned into a template.

    :param parts: everything that goes into it except the image and the machine's description
    :param prepare: does the work in the booted machine; its result is kept for each clone
    """

    parts: tuple[str, ...]
    prepare: Callable[[Machine], Mapping[str, str]]


@dataclass(frozen=True)
class MachineParts(Generic[K]):
    """What a machine is started from::

        MachineParts("machine", image, spec.machine, directory, kernel=None)

    :param name: unique within an environment
    :param spec: its size
    :param directory: of this machine alone
    :param kernel: what :meth:`Carrier.provide_kernel` returned
    :param driver: to be loaded later; None for a machine that gets none
    :param links: its ends of links to other machines
    :param own_network: no host is the network stack that the kernel began with
    :param template: how it is prepared; None for one that is to boot
    """

    name: str
    image: Image
    spec: MachineSpec
    directory: Path
    kernel: K
    driver: BuiltDriver | None = None
    links: tuple[MachineLinkEnd, ...] = ()
    own_network: bool = True
    template: TemplatePlan | None = None


class Carrier(ABC, Generic[K]):
    """What gives machines a running kernel; ``docs/extending.md`` adds one."""

    own_kernel = True
    """Whether each machine has a kernel of its own. Otherwise it is this computer's: an environment
    has one machine, the kernel's options are given, and the driver may be installed already."""
    at_once = 1
    """How many environments at once make a run shorter, where there is memory for them."""
    ahead = Ahead.TOOLCHAIN
    """What is made meanwhile when the image has to be made first."""
    builds_kernel = False
    """Whether the machines' kernel is built here, so that an environment may choose its options."""
    clones = False
    """Whether :attr:`MachineParts.template` is of use to it."""

    def require_possible(self, spec: EnvironmentSpec) -> None:
        """Look whether this computer permits an environment, at the cost of nothing.

        :raises ProvisionError: it does not
        """

    def is_soon(self, image: Image, options: KernelSpec) -> bool:
        """Whether machines start so soon that a mistake in what is to run costs little.

        :param options: of their kernel
        """
        return False

    def watched(self, tree: Path) -> list[Path]:
        """Where in a driver's tree a save changes what runs."""
        return [tree / part for part in SOURCE_PARTS]

    @abstractmethod
    def provide_kernel(
        self, driver: DriverSpec, options: KernelSpec, image: Image, progress: Progress
    ) -> K:
        """The machines' kernel, built first if need be; None for the image's own.

        :param options: for a kernel that is built here
        :raises ProvisionError: it cannot be had
        """

    @abstractmethod
    def provide_driver(
        self, driver: DriverSpec, image: Image, kernel: K, progress: Progress
    ) -> BuiltDriver:
        """The driver for that kernel, built first if need be.

        :raises UsageError: the spec's path holds no driver
        :raises ProvisionError: it cannot be had
        """

    @abstractmethod
    def started(
        self, parts: MachineParts[K], progress: Progress, *, keep: bool
    ) -> AbstractContextManager[Machine]:
        """A machine that takes commands, for as long as the context lasts.

        The console and the shared directory stay when it has ended.

        :param keep: leave it running, unless an exception ends the context
        :raises ProvisionError: it did not start
        """

    @abstractmethod
    def attach(self, name: str, directory: Path) -> Machine:
        """The machine that another process left running in a directory, or that has died since.

        :raises ProvisionError: there is none
        """

    @abstractmethod
    def destroy(self, name: str, directory: Path) -> None:
        """End the machine in a directory, whatever process started it, and remove what is its own.

        Nothing happens when there is none.

        :raises ProvisionError: it is another user's
        """

    def destroy_strays(self) -> list[Path]:
        """End this user's machines whose directories were removed while they ran.

        Returns the directories.
        """
        return []
