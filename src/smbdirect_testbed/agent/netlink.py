"""pyroute2, without those of its parts that are not needed here.

All of it takes three times as long to import as what a machine's hosts and links need. What is
left out: the package's own module (which imports every other), its doubles for tests, its traffic
control (iproute2's ``tc`` does that here), and Python modules that only these use. If that does not
fit the version at hand, all of it is imported.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections import namedtuple
from types import ModuleType
from typing import Any

_DIST_PACKAGES = "/usr/lib/python3/dist-packages"
_LEFT_OUT: dict[str, dict[str, Any]] = {
    "multiprocessing": {"Pipe": None, "Queue": None, "Process": None},
    "pyroute2.lab": {"LAB_API": type("LAB_API", (), {})},
    "pyroute2.netlink.rtnl.tcmsg": {"plugins": {}, "tcmsg": type("tcmsg", (), {})},
}


_Uname = namedtuple("_Uname", "system node release version machine processor")


def _part() -> Any:
    """Import what is needed alone."""
    found = importlib.util.find_spec("pyroute2")
    if found is None:
        raise ImportError("pyroute2 is not there")
    sys.modules["pyroute2"] = importlib.util.module_from_spec(found)
    for name, content in _LEFT_OUT.items():
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__dict__.update(content)
    # It wants to know the processor, for which these would run programs.
    known = _Uname(*os.uname(), "")
    saved = platform.uname, platform.architecture
    answers: Any = (lambda: known, lambda *_: ("64bit", "ELF"))
    platform.uname, platform.architecture = answers
    try:
        from pyroute2.iproute import IPRoute
    finally:
        platform.uname, platform.architecture = saved
    return IPRoute


def _load() -> Any:
    before = set(sys.modules)
    if "pyroute2" not in before:
        try:
            return _part()
        except (ImportError, AttributeError, TypeError):
            for name in set(sys.modules) - before:
                del sys.modules[name]
    from pyroute2 import IPRoute

    return IPRoute


if _DIST_PACKAGES not in sys.path and importlib.util.find_spec("pyroute2") is None:
    # Started without Python's site module, which takes as long to import as this does without it.
    sys.path.append(_DIST_PACKAGES)
IPRoute = _load()
