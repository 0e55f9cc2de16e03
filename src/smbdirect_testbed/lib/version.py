"""The testbed's own version."""

from __future__ import annotations

from importlib.metadata import version

from smbdirect_testbed.lib import paths, process
from smbdirect_testbed.lib.errors import ProvisionError

_TIMEOUT = 10.0


def own_version() -> str:
    """The version, and where git knows it, the commit: ``0.1.0 (git 1a2b3c4d5e6f, changed)``.

    ``changed`` says that files of the checkout differ from the commit.
    """
    number = version("smbdirect-testbed")
    ask = ["git", "-C", str(paths.PROJECT), "describe", "--always", "--exclude=*", "--abbrev=12"]
    try:
        commit = process.run([*ask, "--dirty=, changed"], timeout=_TIMEOUT).stdout.strip()
    except ProvisionError:
        # There is no git, or no checkout that git reads.
        return number
    return f"{number} (git {commit})"
