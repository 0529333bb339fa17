"""The exit statuses of the command lines."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """How a command ended, for the shell."""

    DONE = 0
    REFUSED = 1  # Nothing was asked: a wrong word, a missing key, a cluster that is too small.
    CELL_FAILED = 2  # A cell has no scored sample, or too many samples failed.
    GATE_FAILED = 3
    STOPPED = 4  # The run can be continued.
    INTERRUPTED = 130  # This is what shells use for a process that SIGINT ended.
