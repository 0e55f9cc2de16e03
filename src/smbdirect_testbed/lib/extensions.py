"""What other packages add to a table: entry points of a group.

To look for them takes longer than all that a run does before its machines start, so it is done for
a name that no table of this package has, and for a message about one that nobody has.
"""

from __future__ import annotations

from smbdirect_testbed.lib.errors import UsageError


def extension(group: str, name: str) -> object | None:
    """What another package offers under a name; None if there is no such package.

    :raises UsageError: it cannot be imported
    """
    from importlib.metadata import entry_points

    for found in entry_points(group=group, name=name):
        try:
            offered: object = found.load()
        except Exception as e:
            raise UsageError(
                f"{name} of {group} cannot be imported: {type(e).__name__}: {e}",
                hint=f"it is {found.value}, which an installed package names",
            ) from e
        return offered
    return None


def extension_names(group: str) -> list[str]:
    """All names that other packages offer something under."""
    from importlib.metadata import entry_points

    return sorted({found.name for found in entry_points(group=group)})
