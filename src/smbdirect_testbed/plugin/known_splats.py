"""Reports of the kernel that are known: of one scenario, by its mark, or of all, by a file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from smbdirect_testbed.kernel.splats import Splat
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import UsageError
from smbdirect_testbed.plugin.markers import OLD_NAMES

_MARKER = "known_splat"
_NAMES = {_MARKER} | {old for old, new in OLD_NAMES.items() if new == _MARKER}

_Text = Annotated[str, Field(min_length=1)]
_Version = Annotated[str, Field(pattern=r"^\d+\.\d+(\.\d+)?$")]


def known_file() -> Path:
    """The file of known reports that comes with the scenarios."""
    return paths.scenarios() / "known-splats.toml"


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class KnownSplat:
    """One report that is known.

    :param fingerprint: of the report, or a pattern as the shell has them for file names
    :param reason: what is wrong, in a line
    :param upstream: where upstream tells of it: a link to the fix or the discussion
    :param since: the first kernel that has it; "" for any
    :param until: the first kernel that no longer has it; "" when it is not repaired
    """

    fingerprint: _Text
    reason: _Text
    upstream: Annotated[str, Field(pattern=r"^https://")]
    since: _Version | None = None
    until: _Version | None = None

    def concerns(self, kernel: str) -> bool:
        """Whether a kernel, by its release, is of those that have it."""
        version = _numbers(kernel)
        return not (
            (self.since and version < _numbers(self.since))
            or (self.until and version >= _numbers(self.until))
        )


_ENTRIES = TypeAdapter(dict[str, list[KnownSplat]])


@dataclass(frozen=True)
class KnownSplats:
    """The known reports that concern a kernel.

    :param path: the file they are from, for messages
    """

    path: Path
    entries: tuple[KnownSplat, ...]

    @classmethod
    def load(cls, path: Path, kernel: str) -> KnownSplats:
        """Read a file of known reports; one that is not there holds none.

        :param kernel: the release of the kernel under test
        :raises UsageError: the file is not right, with the place
        """
        try:
            data = tomllib.loads(path.read_text())
            entries = _ENTRIES.validate_python(data).get("known", [])
        except FileNotFoundError:
            return cls(path, ())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as e:
            raise UsageError(f"{path}: {e}") from e
        except ValidationError as e:
            error = e.errors()[0]
            where = " ".join(str(p + 1 if isinstance(p, int) else p) for p in error["loc"])
            raise UsageError(f"{path}: {where}: {error['msg']}") from e
        if unknown := data.keys() - {"known"}:
            raise UsageError(f"{path}: unknown key {sorted(unknown)[0]}; entries are [[known]]")
        return cls(path, tuple(e for e in entries if e.concerns(kernel)))

    def entry(self, splat: Splat) -> KnownSplat | None:
        """The first entry that is about a report."""
        matching = (e for e in self.entries if fnmatchcase(splat.fingerprint, e.fingerprint))
        return next(matching, None)

    def unmatched(self, fingerprints: Sequence[str]) -> list[str]:
        """Lines about the entries that matched none of a run's reports."""
        return [
            f"{self.path.name}: {entry.fingerprint} was not reported: take the entry away if it"
            " never is again"
            for entry in self.entries
            if not any(fnmatchcase(f, entry.fingerprint) for f in fingerprints)
        ]


def expect(
    item: pytest.Item, report: pytest.TestReport, splats: list[Splat], notes: list[str]
) -> tuple[list[Splat], str]:
    """Judge the kernel's reports of a scenario marked ``known_splat(function, reason)``.

    The report becomes one of a known failure if the kernel complained in that function. With
    ``sometimes=True`` it may also pass.

    :param splats: what the kernel reported
    :param notes: gets a line if the marker has its old name
    :returns: those that are not the known one, and what is wrong if that did not come
    """
    marker = _mark(item)
    if marker is None or report.when != "call":
        return splats, ""
    if marker.name != _MARKER:
        file = item.nodeid.partition("::")[0]
        note = f"{file}: the marker {marker.name} is called {_MARKER} now; the old name works, too"
        if note not in notes:
            notes.append(note)
    function, reason = marker.args
    others = [s for s in splats if not any(function in line for line in (s.title, *s.trace))]
    if not report.passed or others:
        return others, ""
    if not splats:
        if marker.kwargs.get("sometimes"):
            return [], ""
        return [], f"the kernel did not complain in {function}: take the mark {marker.name} away"
    report.outcome, report.wasxfail = "skipped", f"reason: {reason}"
    return [], ""


def reason_of(item: pytest.Item) -> str:
    """Why a scenario's mark says that its report is known; "" without a mark."""
    marker = _mark(item)
    return str(marker.args[1]) if marker else ""


def _mark(item: pytest.Item) -> pytest.Mark | None:
    return next((m for m in item.iter_markers() if m.name in _NAMES), None)


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(n or 0) for n in found.groups()) if found else ()
