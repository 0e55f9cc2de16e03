"""Reading environment files: TOML in, a validated spec or one clear line out.

A file that says ``like = "rxe"`` names only what differs from that environment.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from smbdirect_testbed.config.spec import EnvironmentSpec
from smbdirect_testbed.lib import paths
from smbdirect_testbed.lib.errors import UsageError

T = TypeVar("T")
_SPEC = TypeAdapter(EnvironmentSpec)


def list_environments() -> list[str]:
    """The names of the environments in ``envs/``."""
    return sorted(p.stem for p in paths.environments().glob("*.toml"))


def load_environment(name: str) -> EnvironmentSpec:
    """Read an environment by its name in ``envs/``, or by a path ending in ``.toml``.

    :raises UsageError: no such file, bad TOML, or a spec that contradicts itself
    """
    path = _file_of(name, Path())
    return parse_environment(_text(path, name), path)


def parse_environment(text: str, path: Path) -> EnvironmentSpec:
    """Turn the text of an environment file into a spec named after the file.

    :raises UsageError: bad TOML, or a spec that contradicts itself
    """
    table = _whole_table(text, path, ())
    hosts = table.get("hosts")
    if any("carrier" in host for host in hosts or () if isinstance(host, dict)):
        raise UsageError(
            f"{path}: hosts: all machines of an environment have the same carrier; remove the key"
            " carrier from the host"
        )
    spec = validate(_SPEC, {"name": path.stem, **table}, path)
    recipe = paths.images() / f"{spec.image}.toml"
    if not recipe.exists():
        known = ", ".join(sorted(p.stem for p in paths.images().glob("*.toml")))
        raise UsageError(f"{path}: image: unknown image {spec.image!r}", hint=f"there are: {known}")
    fragments = paths.kernel_fragments()
    if spec.kernel.config and spec.kernel.config not in fragments:
        raise UsageError(
            f"{path}: kernel.config: unknown config {spec.kernel.config!r}",
            hint=f"there are: {', '.join(fragments)}",
        )
    return spec


def _whole_table(text: str, path: Path, like_it: tuple[Path, ...]) -> dict[str, Any]:
    """What a file says, with what it leaves to the one that it is like.

    :param like_it: the files that are like this one, the first of them first
    """
    table = parse_toml(text, path)
    if "name" in table:
        raise UsageError(f"{path}: name: an environment is named by its file; remove the key")
    like = table.pop("like", None)
    if like is None:
        return table
    if not isinstance(like, str):
        raise UsageError(f"{path}: like: the name of another environment is needed, not {like!r}")
    chain = (*like_it, path)
    other = _file_of(like, path.parent)
    if other.absolute() in [file.absolute() for file in chain]:
        names = " is like ".join(file.stem for file in (*chain, other))
        raise UsageError(f"{path}: like: {names}", hint="one of them must say all of it")
    try:
        base = _text(other, like)
    except UsageError as e:
        raise UsageError(f"{path}: like: {e.message}", hint=e.hint) from e
    return _merged(_whole_table(base, other, chain), table)


def _merged(base: dict[str, Any], difference: dict[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key; everything else, lists too, is replaced."""
    merged = dict(base)
    for key, value in difference.items():
        below = base.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merged(below, value)
        merged[key] = value
    return merged


def _file_of(name: str, directory: Path) -> Path:
    """The file of an environment that is called by its name, or by a path from a directory."""
    return directory / name if name.endswith(".toml") else paths.environments() / f"{name}.toml"


def _text(path: Path, name: str) -> str:
    """What is in the file of an environment that was called by a name."""
    try:
        return path.read_text()
    except FileNotFoundError:
        if name.endswith(".toml"):
            raise UsageError(f"there is no environment file {path}") from None
        raise UsageError(
            f"unknown environment {name!r}", hint=f"there are: {', '.join(list_environments())}"
        ) from None
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot read {path}: {e}") from e


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """Parse TOML.

    :raises UsageError: a syntax error, with its line and column
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"{path}: {e}") from e


def validate(adapter: TypeAdapter[T], table: dict[str, Any], path: Path) -> T:
    """Validate a table read from a file, strictly: "2" is not a number.

    :raises UsageError: one line about the first error: the file, the key, the expected value
    """
    try:
        # Only in JSON mode does strict validation accept text for enums and addresses.
        return adapter.validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as e:
        first, *rest = e.errors()
        more = f" (and {len(rest)} more)" if rest else ""
        raise UsageError(f"{path}: {_explain(first)}{more}") from e


def _explain(error: Any) -> str:
    place = ""
    for part in error["loc"]:
        place += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if place else str(part)
    match error["type"]:
        case "unexpected_keyword_argument":
            text = "unknown key"
        case "missing" | "missing_argument":
            text = "is missing"
        case "value_error":
            text = str(error["ctx"]["error"])
        case _:
            text = f"{error['msg'][0].lower()}{error['msg'][1:]}, not {error['input']!r}"
    return f"{place}: {text}" if place else text
