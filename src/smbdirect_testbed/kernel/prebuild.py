"""Making a toolchain and a kernel while the image is made; they hardly need it.

A separate process makes them. If two processes need one entry of the cache, one makes it and the
other waits; so nothing is handed over. A failed attempt is repeated, and reported, by the process
that needs the result.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum

from smbdirect_testbed.image.image import find_image
from smbdirect_testbed.image.recipe import Recipe, read_recipe
from smbdirect_testbed.kernel.toolchain import provide_newest_toolchain
from smbdirect_testbed.kernel.uml import provide_newest_uml_kernel
from smbdirect_testbed.kernel.uml_config import UmlConfig
from smbdirect_testbed.lib.errors import TestbedError
from smbdirect_testbed.lib.process import kill_group
from smbdirect_testbed.lib.progress import Progress

_STOP_SECONDS = 20.0


class Ahead(StrEnum):
    """What is made meanwhile."""

    TOOLCHAIN = "toolchain"
    UML_KERNEL = "uml-kernel"
    """And the toolchain that it is built with."""


@contextmanager
def made_ahead(recipe: Recipe, what: Ahead, progress: Progress, config: str = "") -> Iterator[None]:
    """If an image must be made, make what goes with it in the background.

    :param config: of the kernel, as :class:`UmlConfig` takes it
    Parts that are not finished when the block ends are made by the code that needs them.
    """
    if find_image(recipe):
        yield
        return
    argv = ["setpriv", "--pdeathsig", "INT", sys.executable, "-m", __name__]
    argv += [recipe.name, what.value, config, str(progress.started)]
    proc = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
        if proc.poll() is None:
            with progress.phase("ahead", "waiting for kernel and build root"):
                proc.wait()
    finally:
        if proc.poll() is None:
            # As Ctrl-C does, so that it removes unfinished entries.
            proc.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                proc.wait(_STOP_SECONDS)
        kill_group(proc)
        proc.wait()


def main(image: str, what: str, config: str, started: str) -> int:
    """Make what goes with an image; the exit status says whether it was made.

    :param image: the name of its recipe
    :param what: an :class:`Ahead`
    :param config: the kernel's
    :param started: monotonic time at which the user's command began, as progress counts it
    """
    progress = Progress(started=float(started))
    try:
        recipe = read_recipe(image)
        if Ahead(what) is Ahead.UML_KERNEL:
            provide_newest_uml_kernel(recipe, progress, UmlConfig(config))
        else:
            provide_newest_toolchain(recipe, progress)
    except TestbedError:
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
