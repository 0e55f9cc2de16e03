"""What tests of several files use."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.helpers.plugin_run import Run

# What a shell starts in the background ignores the signal of Ctrl-C, and programs inherit that.
# Tests of Ctrl-C would then wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)
