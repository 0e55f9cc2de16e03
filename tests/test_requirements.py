"""What pip installs is pinned, with digests: it runs as root in CI."""

from __future__ import annotations

import re
import tomllib

import pytest

from smbdirect_testbed.lib import paths

_CI = paths.PROJECT / ".ci"
_PIN = re.compile(r"^(?P<name>[a-z0-9.-]+)==(?P<version>[\w.+-]+)(?: ; [^\\]+)? \\\n", re.M)


def _pins(file: str) -> dict[str, set[str]]:
    """Versions by name; where these depend on the Python there are several."""
    pins: dict[str, set[str]] = {}
    for found in _PIN.finditer((_CI / file).read_text()):
        pins.setdefault(found["name"], set()).add(found["version"])
    return pins


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_all_dependencies_are_pinned(file: str) -> None:
    project = tomllib.loads((paths.PROJECT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    if "dev" in file:
        wanted += project["optional-dependencies"]["dev"]
    names = {re.split(r"[<>=!~\[; ]", want)[0].lower().replace("_", "-") for want in wanted}
    assert names <= _pins(file).keys()


@pytest.mark.parametrize("file", sorted(f.name for f in _CI.glob("requirements*.txt")))
def test_every_release_has_digests(file: str) -> None:
    text = (_CI / file).read_text()
    # One release each, and nothing besides: no address, no option.
    releases = re.split(r"\n(?=\S)", text.strip())
    assert len(releases) == sum(len(versions) for versions in _pins(file).values())
    for release in releases:
        first, *digests = release.splitlines()
        assert _PIN.match(f"{first}\n"), first
        assert digests
        assert all(re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}(?: \\)?", d) for d in digests)


def test_both_lists_pin_the_same() -> None:
    all_of_them = _pins("requirements-dev.txt")
    assert all(all_of_them[name] == found for name, found in _pins("requirements.txt").items())


def test_set_up_installs_nothing_else() -> None:
    script = (_CI / "setup").read_text()
    installs = [line.split() for line in script.splitlines() if re.match(r"\tpip --", line)]
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install or {"--no-deps", "--no-index"} <= set(install)
    assert script.count("pip install") == 1
