"""Parts of Python's library without the modules around them, which import others at length."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from functools import partial
else:
    import _signal as signal
    from _functools import partial

__all__ = ["partial", "signal"]
