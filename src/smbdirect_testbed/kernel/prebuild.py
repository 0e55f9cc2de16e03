"""Making a toolchain and a kernel while the image, which they hardly need, is being made.

A process of its own does it: of two that want one entry of the cache, one makes it and the other
waits, so that nothing has to be handed over, and an attempt that fails is repeated, and reported,
by whoever needs its result.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from smbdirect_testbed.config.spec import CarrierKind, EnvironmentSpec
from smbdirect_testbed.image.image import find_image
from smbdirect_testbed.kernel.toolchain import provide_newest_toolchain
from smbdirect_testbed.kernel.uml import provide_newest_uml_kernel
from smbdirect_testbed.lib.errors import TestbedError
from smbdirect_testbed.lib.process import kill_group
from smbdirect_testbed.lib.progress import Progress

_STOP_SECONDS = 20.0


@contextmanager
def made_ahead(spec: EnvironmentSpec, progress: Progress) -> Iterator[None]:
    """Meanwhile, make what ``spec`` needs besides its image, if the image has to be made first.

    What has not been made when the block ends, is left to whoever needs it.
    """
    if find_image(spec.image):
        yield
        return
    argv = ["setpriv", "--pdeathsig", "INT", sys.executable, "-m", __name__]
    argv += [spec.image, spec.carrier.value, str(progress.started)]
    proc = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
        if proc.poll() is None:
            with progress.phase("ahead", "waiting for what is made beside the image"):
                proc.wait()
    finally:
        if proc.poll() is None:
            # As Ctrl-C does, so that it removes what is half made.
            proc.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                proc.wait(_STOP_SECONDS)
        kill_group(proc)
        proc.wait()


def main(image: str, carrier: str, started: str) -> int:
    """Make what goes with an image; the exit status says nothing more than whether it was made.

    :param started: monotonic time at which the user's command began, as progress counts it
    """
    progress = Progress(started=float(started))
    try:
        if carrier == CarrierKind.UML:
            provide_newest_uml_kernel(image, progress)
        else:
            provide_newest_toolchain(image, progress)
    except TestbedError:
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
