"""The Debian mirror that this computer's apt is configured for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from smbdirect_testbed.lib import process
from smbdirect_testbed.lib.errors import ProvisionError

VARIABLE = "SMBDIRECT_TESTBED_MIRROR"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_DEBIAN_SUITES = re.compile(
    r"(buster|bullseye|bookworm|trixie|forky|duke|sid|(old){0,2}stable|testing|unstable)"
    r"(-(updates|proposed-updates|backports))?/?"
)
_APT_OPTIONS = re.compile(r"Acquire::(https?::Proxy|ftp::Proxy|Check-Valid-Until|Check-Date)\b.*")


@dataclass(frozen=True)
class Source:
    """One repository of apt's configuration.

    :param uri: as apt has it
    :param suites: distributions, as apt has them
    :param components: main, contrib, ...; empty for a flat repository
    """

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]


def debian_mirror(etc_apt: Path = Path("/etc/apt")) -> str:
    """The address of a Debian mirror: from the variable, or else from apt's configuration.

    :raises ProvisionError: neither names one
    """
    if chosen := os.environ.get(VARIABLE):
        if urlsplit(chosen).scheme not in ("http", "https", "file"):
            raise ProvisionError(
                f"{VARIABLE} is not the address of a Debian mirror",
                hint=f"set {VARIABLE} to one: http://HOST/debian",
            )
        return chosen.rstrip("/")
    found = [m for s in apt_sources(etc_apt) if _is_debian(s) and (m := _plain(s.uri))]
    if not found:
        raise ProvisionError(
            "apt on this computer is not configured for Debian, so no mirror for images is known",
            hint=f"set {VARIABLE} to one: http://HOST/debian",
        )
    # Vendors' repositories use Debian's suite names too, but not its path.
    return min(found, key=lambda uri: not uri.endswith("/debian"))


def origin() -> str:
    """The end of "the Debian mirror that ...": where its address comes from."""
    return f"{VARIABLE} names" if os.environ.get(VARIABLE) else "apt is set up for"


def keyring() -> Path:
    """The keys that Debian's archive is signed with.

    :raises ProvisionError: they are not installed
    """
    if not KEYRING.is_file():
        raise ProvisionError(
            f"{KEYRING} is missing: packages could not be verified",
            hint="install the package debian-archive-keyring",
        )
    return KEYRING


def apt_options() -> list[str]:
    """This computer's apt settings for proxies and old archives, as apt.conf lines."""
    dump = process.run(["apt-config", "dump"], timeout=30, check=False).stdout
    return [line for line in dump.splitlines() if _APT_OPTIONS.match(line) and '""' not in line]


def apt_sources(etc_apt: Path) -> Iterator[Source]:
    """All enabled binary repositories of apt's configuration, in both of its formats."""
    directory = etc_apt / "sources.list.d"
    for file in sorted(directory.glob("*.sources")):
        yield from _deb822(file.read_text(errors="replace"))
    for file in [etc_apt / "sources.list", *sorted(directory.glob("*.list"))]:
        if file.is_file():
            yield from _one_line(file.read_text(errors="replace").splitlines())


def _one_line(lines: Iterable[str]) -> Iterator[Source]:
    for line in lines:
        words = re.sub(r"\[.*?\]", " ", line.partition("#")[0]).split()
        if len(words) >= 3 and words[0] == "deb":
            yield Source(words[1], (words[2],), tuple(words[3:]))


def _deb822(text: str) -> Iterator[Source]:
    for stanza in re.split(r"\n\s*\n", text):
        fields = _fields(stanza)
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").lower() in ("no", "false", "off", "0", "without"):
            continue
        suites = tuple(fields.get("suites", "").split())
        components = tuple(fields.get("components", "").split())
        for uri in fields.get("uris", "").split():
            yield Source(uri, suites, components)


def _fields(stanza: str) -> Mapping[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace():
            fields[name] = f"{fields.get(name, '')} {line.strip()}"
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def _is_debian(source: Source) -> bool:
    return "main" in source.components and any(_DEBIAN_SUITES.fullmatch(s) for s in source.suites)


def _plain(uri: str) -> str | None:
    """The address itself, or the first entry of a mirror list (as in cloud images)."""
    if uri.startswith("mirror+file:"):
        try:
            entries = Path(urlsplit(uri).path).read_text().split()
        except OSError:
            return None
        uri = next((e for e in entries if e.startswith("http")), "")
    return uri.rstrip("/") if urlsplit(uri).scheme in ("http", "https", "file") else None
