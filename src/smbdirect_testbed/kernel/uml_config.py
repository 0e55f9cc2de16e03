"""The options of a User Mode Linux that is built here: what all have, and fragments on top."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from smbdirect_testbed.lib import paths

_BASE = "base"
_OPTION = re.compile(r"(?:# )?(CONFIG_\w+)(?:=| is not set$)")


@dataclass(frozen=True)
class UmlConfig:
    """Options of a kernel.

    :param fragment: the name of a file ``vm-images/uml/NAME.config``, whose options come on top of
        those that every User Mode Linux has; "" for none
    """

    fragment: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that say it, the last word in the last."""
        names = (_BASE, self.fragment) if self.fragment else (_BASE,)
        return tuple(paths.kernel_config(name) for name in names)

    @property
    def text(self) -> str:
        """One line for each option, as in a kernel's ``.config``."""
        return "".join(f"{line}\n" for line in self._options().values())

    def dropped(self, config: str) -> list[str]:
        """The options that a kernel's ``.config`` lacks.

        kconfig drops what the kernel does not know, and what needs something else.
        """
        got = set(config.splitlines())
        return [line for name, line in self._options().items() if not _has(got, name, line)]

    def _options(self) -> dict[str, str]:
        lines = (line for file in self.files for line in file.read_text().splitlines())
        return {found[1]: line for line in lines if (found := _OPTION.match(line))}


def _has(got: set[str], name: str, line: str) -> bool:
    if line in got:
        return True
    if line.startswith("# "):
        return not any(other.startswith(f"{name}=") for other in got)
    # Asked for as a module, and needed by something built in.
    return line.endswith("=m") and f"{name}=y" in got
