"""Runs that were killed: their results are written by the next command."""

from __future__ import annotations

from smbdirect_testbed.lib.progress import Progress
from smbdirect_testbed.results.record import killed_runs


def publish_killed_runs(progress: Progress) -> None:
    """Write the results of runs that were killed, as far as they got, and say so."""
    for directory in killed_runs():
        # It takes time to import, and is seldom needed.
        from smbdirect_testbed.plugin.publish import publish_killed

        if report := publish_killed(directory):
            progress.say(f"results of a run that was killed: {report}")
