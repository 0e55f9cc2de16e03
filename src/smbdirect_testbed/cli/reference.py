"""The reference of what scenarios use, from the code: ``docs/scenarios.md``.

``python -m smbdirect_testbed.cli.reference`` writes it. What lies between a line
``<!-- generated: fixtures -->`` and the next ``<!-- end -->`` is made from docstrings and markers;
the text around that is written by hand.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType

from smbdirect_testbed import scenario
from smbdirect_testbed.lib import paths
from smbdirect_testbed.plugin import fixtures as fixtures_module
from smbdirect_testbed.plugin.markers import MARKERS, OLD_NAMES

DOCUMENT = paths.PROJECT / "docs" / "scenarios.md"


@dataclass(frozen=True)
class Entry:
    """Something that scenarios use::

        Entry("wire", "What goes over the links.", "wire.expect(Transport.SMBDIRECT)")

    :param summary: one sentence, in Markdown
    :param example: Python, one or more lines
    """

    name: str
    summary: str
    example: str

    @classmethod
    def of(cls, name: str, text: str) -> Entry:
        """What a docstring says: its first paragraph, and what is indented below a ``::``.

        :param text: the docstring, without the indentation that it has from where it stands
        :raises ValueError: it has no summary or no example
        """
        example = re.search(r"::\n\n((?:(?: {4}.*)?\n)+)", f"{text}\n")
        summary = text.partition("\n\n")[0].replace("\n", " ").replace("::", ".")
        summary = re.sub(r":\w+:`|``", "`", summary)
        code = textwrap.dedent(example[1]).strip() if example else ""
        if not summary or not code:
            raise ValueError(f"{name} has no summary and example in its docstring")
        return cls(name, summary, code)


def fixtures() -> list[Entry]:
    """All fixtures that scenarios may ask for, in the order of the code."""
    (plugin,) = (n for n in _body(fixtures_module) if isinstance(n, ast.ClassDef))
    return [
        Entry.of(n.name, _docstring(n))
        for n in plugin.body
        if isinstance(n, ast.FunctionDef)
        and not n.name.startswith("_")
        and any("pytest.fixture" in ast.unparse(d) for d in n.decorator_list)
    ]


def markers() -> list[Entry]:
    """All markers."""
    found = []
    for marker in MARKERS:
        name = marker.signature.partition("(")[0]
        old = [f"; its old name is `{o}`" for o, new in OLD_NAMES.items() if new == name]
        found.append(Entry(marker.signature, marker.meaning + "".join(old), marker.example))
    return found


def names() -> list[Entry]:
    """All that scenarios may import, sorted as people look for it."""
    constants = dict(_constants(scenario))
    found = []
    for name in sorted(scenario.__all__, key=str.casefold):
        value = getattr(scenario, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            text = _docstring(ast.parse(inspect.getsource(value)).body[0])
        else:
            text = constants.get(name, "")
        found.append(Entry.of(name, text))
    return found


def _docstring(node: ast.AST) -> str:
    """A docstring without the indentation of its place.

    Python's own function for that would take an example's indentation, too, where nothing but the
    example follows the first line.
    """
    match node:
        case (
            ast.FunctionDef(body=[ast.Expr(ast.Constant(value=str(text))) as place, *_])
            | ast.ClassDef(body=[ast.Expr(ast.Constant(value=str(text))) as place, *_])
        ):
            lines = [line.removeprefix(" " * place.col_offset) for line in text.split("\n")]
            return "\n".join(lines).strip()
    return ""


def _body(module: ModuleType) -> list[ast.stmt]:
    return ast.parse(inspect.getsource(module)).body


def _constants(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Constants of a module, and the strings below them that say what they are."""
    for statement, below in pairwise(_body(module)):
        match statement, below:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(ast.Constant(value=str(text))):
                yield name, text


def _table(entries: list[Entry], kind: str) -> str:
    lines = [f"| {kind} | meaning | example |", "|---|---|---|"]
    for entry in entries:
        if "\n" in entry.example:
            raise ValueError(f"the example of {entry.name} has more than one line")
        cells = (f"`{entry.name}`", entry.summary.rstrip("."), f"`{entry.example}`")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _sections(entries: list[Entry]) -> str:
    return "\n\n".join(
        f"**`{e.name}`**: {e.summary}\n\n```python\n{e.example}\n```" for e in entries
    )


_PARTS: dict[str, Callable[[], str]] = {
    "fixtures": lambda: _table(fixtures(), "fixture"),
    "markers": lambda: _table(markers(), "marker"),
    "names": lambda: _sections(names()),
}
_GENERATED = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.S)


def updated(text: str) -> str:
    """The document's text, with its generated parts as the code is now.

    :raises ValueError: a part is missing
    """
    if missing := _PARTS.keys() - {part[2] for part in _GENERATED.finditer(text)}:
        raise ValueError(f"there is no part <!-- generated: {sorted(missing)[0]} -->")

    def generate(part: re.Match[str]) -> str:
        return f"{part[1]}\n{_PARTS[part[2]]()}\n\n{part[3]}"

    return _GENERATED.sub(generate, text)


def main() -> None:
    """Write the document."""
    DOCUMENT.write_text(updated(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
