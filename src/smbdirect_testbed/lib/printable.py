"""Text of a machine, as it may be shown: a terminal does what control characters tell it."""

from __future__ import annotations

import re

# C0 without tab and line feed, DEL, C1; and what turns the direction of writing.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""The text with its control characters spelt: ``\x1b``. Tabs and line breaks stay.

    Text without any is returned as it is.
    """
    return _CONTROL.sub(_spelt, text.replace("\r\n", "\n")) if _CONTROL.search(text) else text


def _spelt(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
