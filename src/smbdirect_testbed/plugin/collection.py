"""Which scenarios a run is of, and what is wrong with how they were asked for."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from smbdirect_testbed.lib.errors import UsageError
from smbdirect_testbed.plugin import markers
from smbdirect_testbed.plugin.foundations import (
    Foundations,
    foundations_first,
    foundations_of,
)
from smbdirect_testbed.plugin.run_context import RunContext
from smbdirect_testbed.plugin.shard import Share
from smbdirect_testbed.plugin.smbtorture import check_expectations


class Collection:
    """Plugged into pytest next to :class:`RunPlugin`: picks the scenarios.

    :param thorough: also those that are marked so
    :param share: a part of them only
    """

    def __init__(self, context: RunContext, *, thorough: bool, share: Share | None) -> None:
        self._context = context
        self._thorough = thorough
        self._share = share
        self._errors: list[str] = []

    def error(self) -> UsageError | None:
        """What was wrong; None if the scenarios can run."""
        if not self._errors:
            return None
        detail = "\n".join("\n".join(self._errors).splitlines()[1:])
        return UsageError(self._errors[0].splitlines()[0], detail=detail)

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self, session: pytest.Session) -> Generator[None, object, object]:
        try:
            done = yield
        except pytest.UsageError as e:
            self._errors.append(str(e))
            session.items = []
            return None
        if not session.items and not self._errors:
            self._errors.append(
                f"no scenario matches {session.config.getoption('keyword') or 'the paths given'}"
            )
        return done

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            where = report.nodeid or "the scenarios"
            self._errors.append(f"{where} cannot be read as scenarios\n{report.longreprtext}")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        markers.check_markers(items)
        if not self._thorough and (left_out := [i for i in items if markers.is_thorough(i)]):
            items[:] = [i for i in items if i not in left_out]
            self._context.notes.append(
                f"{len(left_out)} thorough scenarios were left out; run --thorough runs them, too"
            )
        files = foundations_of(items)
        directory = self._context.results.directory
        log = (directory.parent if self._share else directory) / "foundations.jsonl"
        self._context.foundations = Foundations(log, files)
        if self._share:
            items[:] = self._share.pick(items)
        items[:] = foundations_first(items, files)
        check_expectations(items)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._context.recorder.expect(item.nodeid for item in session.items)
