"""Bugs put back: small files that say what to change in the driver, and what must find it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from smbdirect_testbed.lib.errors import UsageError

CATALOGUE = Path(__file__).with_name("catalogue")
_COMMIT = re.compile(r"[0-9a-f]{12}|CVE-\d{4}-\d{4,}")


class Kind(StrEnum):
    """What a bug does to its victims."""

    HANG = "hang"
    DATA = "data"
    PROTOCOL = "protocol"
    SECURITY = "security"
    LEAK = "leak"
    MEMORY = "memory"
    LOCKING = "locking"
    CRASH = "crash"


class Which(StrEnum):
    """Which scenarios catch a bug: those of a run without arguments, or thorough ones, too."""

    DEFAULT = "default"
    THOROUGH = "thorough"


class DoesNotFit(UsageError):
    """The place of an edit is not in the source, or is there more than once."""


@dataclass(frozen=True)
class Edit:
    """One place in the source, and what stands there instead.

    :param file: in a kernel tree
    :param find: a few words of C that are there once; any white space stands for any other
    :param put: what replaces them
    :param function: the function that they are in; empty: they are unique in the file
    """

    file: str
    find: str
    put: str
    function: str = ""

    def apply(self, text: str) -> str:
        """The file's text with the edit in it.

        :raises DoesNotFit: there is no such place, or there are several
        """
        begin, end = self._where(text)
        pattern = r"\s+".join(re.escape(word) for word in self.find.split())
        places = list(re.compile(pattern).finditer(text, begin, end))
        if len(places) != 1:
            found = f"is there {len(places)} times" if places else "is not there"
            raise DoesNotFit(
                f"{self._place()}: {self.find!r} {found}; choose another place for this kernel"
            )
        return text[: places[0].start()] + self.put + text[places[0].end() :]

    def _where(self, text: str) -> tuple[int, int]:
        if not self.function:
            return 0, len(text)
        # A definition: its name begins on a line without indentation, and a brace opens its body.
        head = rf"^(?:\w[^\n;]*?[\s*])?{re.escape(self.function)}\([^;{{]*?\)\s*\n\{{\n.*?^\}}"
        bodies = list(re.finditer(head, text, re.MULTILINE | re.DOTALL))
        if len(bodies) != 1:
            raise DoesNotFit(f"{self.file}: {len(bodies)} functions {self.function} are there")
        return bodies[0].start(), bodies[0].end()

    def _place(self) -> str:
        return f"{self.file}: {self.function}()" if self.function else self.file


@dataclass(frozen=True)
class Bug:
    """A bug that can be put back.

    :param kind: what it does
    :param what: the mistake, in one sentence
    :param happens: what comes of it here
    :param edits: the places to change
    :param scenarios: pytest's expression for what must catch it
    :param which: whether these are in a run without arguments
    :param environment: where they must catch it
    :param upstream: the commit that repaired it (12 digits), or a CVE's number; empty: a mistake of
        our own invention
    :param quick: one of those that ``make test`` tries
    """

    name: str
    kind: Kind
    what: str
    happens: str
    edits: tuple[Edit, ...]
    scenarios: str
    which: Which = Which.DEFAULT
    environment: str = "uml-rxe"
    upstream: str = ""
    quick: bool = False

    def __post_init__(self) -> None:
        if not self.edits:
            raise UsageError(f"{self.name}: edits: at least one is needed")
        if self.upstream and not _COMMIT.fullmatch(self.upstream):
            raise UsageError(
                f"{self.name}: upstream: {self.upstream!r} is neither 12 digits of a commit nor a"
                " CVE's number"
            )

    @property
    def expression(self) -> str:
        """What a run chooses: without thorough scenarios, if those of the default set suffice."""
        if self.which is Which.THOROUGH:
            return self.scenarios
        return f"({self.scenarios}) and not thorough"

    def put_back(self, tree: Path) -> None:
        """Make the edits in a tree.

        :raises DoesNotFit: the source is another than the one they were made for
        """
        for edit in self.edits:
            file = tree / edit.file
            try:
                text = file.read_text()
            except FileNotFoundError:
                raise DoesNotFit(f"{self.name}: the source has no {edit.file}") from None
            try:
                file.write_text(edit.apply(text))
            except DoesNotFit as e:
                raise DoesNotFit(f"{self.name}: {e.message}") from e


_BUG = TypeAdapter(Bug)


def read_bug(file: Path) -> Bug:
    """Read one file of the catalogue.

    :raises UsageError: what is wrong in it, in one line
    """
    try:
        table = tomllib.loads(file.read_text())
        if unknown := set(table) - set(Bug.__dataclass_fields__):
            raise UsageError(f"{file.name}: unknown keys: {', '.join(sorted(unknown))}")
        return _BUG.validate_python({"name": file.stem, **table})
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"{file.name}: {e}") from e
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{file.name}: {where}: {first['msg']}") from e


def catalogue(directory: Path = CATALOGUE) -> Iterator[Bug]:
    """All bugs, by name."""
    for file in sorted(directory.glob("*.toml")):
        yield read_bug(file)
