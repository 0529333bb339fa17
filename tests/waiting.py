"""Waiting for what another process or thread is about to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

DEADLINE_S = 180.0  # What it limits takes seconds on a machine with nothing else to do.


def wait_until(true: Callable[[], Any], what: str = "what a test waits for", deadline_s: float = DEADLINE_S) -> Any:
    """What `true` returns, once that is true."""
    deadline = time.monotonic() + deadline_s
    while not (result := true()):
        assert time.monotonic() < deadline, f"not in {deadline_s:.0f} s: {what}"
        time.sleep(0.01)
    return result
