"""The pytest plugin that runs scenarios in an environment.

:class:`RunPlugin` is one run: the command line makes it and calls its ``main``. Scenarios use the
fixtures in :mod:`smbdirect_testbed.plugin.fixtures` and the marker ``needs``.
"""

from smbdirect_testbed.plugin.run import RunPlugin

__all__ = ["RunPlugin"]
