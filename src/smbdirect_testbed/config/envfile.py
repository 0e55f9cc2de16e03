"""Reading environment files: TOML in, a validated spec or one clear line out."""

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

    :raises UsageError: no such file, bad TOML, or a spec that does not hold together
    """
    by_path = name.endswith(".toml")
    path = Path(name) if by_path else paths.environments() / f"{name}.toml"
    try:
        text = path.read_text()
    except FileNotFoundError:
        if by_path:
            raise UsageError(f"there is no environment file {path}") from None
        raise UsageError(
            f"unknown environment {name!r}", hint=f"there are: {', '.join(list_environments())}"
        ) from None
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot read {path}: {e}") from e
    return parse_environment(text, path)


def parse_environment(text: str, path: Path) -> EnvironmentSpec:
    """Turn the text of an environment file into a spec named after the file.

    :raises UsageError: bad TOML, or a spec that does not hold together
    """
    table = parse_toml(text, path)
    if "name" in table:
        raise UsageError(f"{path}: name: an environment is named by its file; remove the key")
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
    return spec


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """Parse TOML.

    :raises UsageError: a syntax error, with its line and column
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"{path}: {e}") from e


def validate(adapter: TypeAdapter[T], table: dict[str, Any], path: Path) -> T:
    """Validate a table read from a file, strictly: "2" is no number.

    :raises UsageError: one line for the first thing wrong: the file, the key, what is expected
    """
    try:
        # JSON mode: the one in which strictness still takes text for enums and addresses.
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
