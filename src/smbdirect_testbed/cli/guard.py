"""What a command ends with: its exit status, and one clear line if it failed."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from smbdirect_testbed.lib.errors import ExitStatus, TestbedError


def guarded(command: Callable[[], object]) -> int:
    """Run a command; return its exit status, and say what went wrong."""
    try:
        status = command()
        return status if isinstance(status, int) else ExitStatus.PASSED
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.ClickException as e:
        e.show()
        return ExitStatus.USAGE
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; nothing is left behind")
        return ExitStatus.INTERRUPTED
    except TestbedError as e:
        if e.detail:
            print(e.detail, file=sys.stderr)
        _complain(e.message)
        if e.hint:
            print(f"  {e.hint}", file=sys.stderr)
        return e.exit_status


def _complain(text: str) -> None:
    print(f"smbdirect-testbed: {text}", file=sys.stderr)
