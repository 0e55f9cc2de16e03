"""The errors that a user of the testbed can meet, and their exit statuses.

Any other exception is a bug of the testbed.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from smbdirect_testbed.lib.printable import printable


class ExitStatus(IntEnum):
    """Exit status of the command line."""

    PASSED = 0
    FAILED = 1
    USAGE = 2
    NOT_PROVIDED = 3
    INTERRUPTED = 130


class TestbedError(Exception):
    """An expected failure: one line for the user, and what to do about it.

    ::

        with pytest.raises(TestbedError) as error:
            client.run(["false"])
        assert error.value.message == "command failed with status 1: false"

    :param message: what is wrong and where, one line
    :param hint: what the user can do, one line
    :param detail: evidence to show below the line (compiler errors, the end of a log)
    """

    __test__ = False
    exit_status = ExitStatus.NOT_PROVIDED

    def __init__(self, message: str, *, hint: str | None = None, detail: str | None = None) -> None:
        # Parts may be a machine's words, and all is shown at a terminal.
        self.message = printable(message)
        self.hint = printable(hint) if hint else hint
        self.detail = printable(detail) if detail else detail
        super().__init__(self.message)


class UsageError(TestbedError):
    """The command line or a file the user wrote is wrong."""

    exit_status = ExitStatus.USAGE


class ProvisionError(TestbedError):
    """The environment could not be provided.

    ::

        if "listening" not in done.stdout:
            raise ProvisionError("the echo server does not listen", detail=done.output)
    """


class CarrierFailed(ProvisionError):
    """No machine could be started, for whatever reason; one of another carrier may be."""


@contextmanager
def carrier_failures() -> Iterator[None]:
    """Raise what cannot be provided in the block as :class:`CarrierFailed`."""
    try:
        yield
    except UsageError:
        raise
    except ProvisionError as e:
        raise CarrierFailed(e.message, hint=e.hint, detail=e.detail) from e


class MachineDied(ProvisionError):
    """A machine stopped running: its kernel panicked, or its carrier's process ended.

    ::

        with pytest.raises(MachineDied, match="sysrq"):
            server.machine.run(["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 60"])
    """


class CommandFailed(ProvisionError):
    """A command ended with a status other than 0, or did not end in time.

    ::

        with pytest.raises(CommandFailed) as error:
            client.run(["sh", "-c", "exit 3"])
        assert error.value.status == 3

    :param argv: the command
    :param status: its exit status; negative is a signal; None means it was stopped at its deadline
    :param output: the last lines of what it printed
    :param log: where all of its output lies
    """

    def __init__(
        self, argv: Sequence[str], status: int | None, output: str, *, log: Path | None = None
    ) -> None:
        how = "did not end in time" if status is None else f"failed with status {status}"
        super().__init__(
            f"command {how}: {shlex.join(argv)}",
            hint=f"the full log is {log}" if log else None,
            detail="\n".join(output.rstrip().splitlines()[-20:]),
        )
        self.argv = tuple(argv)
        self.status = status
        self.output = output
        self.log = log

    def __reduce__(self) -> tuple[object, ...]:
        """pickle rebuilds an exception from its arguments, and this one has others."""
        return type(self), (self.argv, self.status, self.output), self.__dict__
