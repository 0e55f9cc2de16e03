"""Which carriers work here: what a run would start is started, for a moment."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from smbdirect_testbed.carriers.uml.provide import require_place, uml_machine
from smbdirect_testbed.carriers.uml.state import UmlState
from smbdirect_testbed.carriers.vm.domain_xml import Accelerator
from smbdirect_testbed.carriers.vm.trial import try_domain
from smbdirect_testbed.config.spec import MachineSpec
from smbdirect_testbed.image.image import find_image
from smbdirect_testbed.image.recipe import read_recipe
from smbdirect_testbed.kernel.uml import find_uml_program
from smbdirect_testbed.lib.errors import ProvisionError
from smbdirect_testbed.lib.progress import Progress

_NAME = "trial"


@dataclass(frozen=True)
class Trial:
    """What came of starting something.

    :param works: None if only a part could be tried
    :param found: what was started, or why it was not
    :param hint: what to do about it
    """

    works: bool | None
    found: str
    hint: str = ""


def try_vm() -> Trial:
    """Start a domain of libvirt's."""

    def start(directory: Path) -> Trial:
        tried = try_domain(directory)
        qemu = tried.versions.qemu.partition("Debian")[0]
        with_kvm = "with KVM" if tried.accelerator is Accelerator.KVM else "without KVM"
        return Trial(True, f"a domain ran in QEMU {qemu}, {with_kvm}")

    return _tried(start)


def try_uml(image: str, spec: MachineSpec) -> Trial:
    """Boot User Mode Linux with an image, as far as both have been made.

    :param image: the name of its recipe
    """
    made = find_image(read_recipe(image))
    program = find_uml_program(made) if made else None

    def start(directory: Path) -> Trial:
        if made is None or program is None:
            place = require_place(spec.memory, UmlState(directory))
            return Trial(None, f"not built yet; its memory would be in {place}")
        with ExitStack() as stack:
            stack.enter_context(
                uml_machine(_NAME, made, program, spec, directory, Progress(quiet=True))
            )
            return Trial(True, f"a machine with {program.release} booted")

    return _tried(start)


def _tried(start: Callable[[Path], Trial]) -> Trial:
    try:
        with tempfile.TemporaryDirectory(prefix="smbdirect-testbed-") as directory:
            return start(Path(directory))
    except ProvisionError as e:
        return Trial(False, e.message, e.hint or "")
    except OSError as e:
        return Trial(False, str(e), "set TMPDIR to a directory that can be written to")
