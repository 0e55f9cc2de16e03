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
    """If the image must be made, make the other parts of ``spec`` in the background.

    Parts that are not finished when the block ends are made by the code that needs them.
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


def main(image: str, carrier: str, started: str) -> int:
    """Make the other parts for an image; the exit status says whether they were made.

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
