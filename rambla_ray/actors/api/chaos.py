"""The faults of `config.Chaos` that strike calls: which one a call draws, and what kind of error it is."""

from __future__ import annotations

import random

from rambla_ray.config.sections import Chaos
from rambla_ray.errors import ErrorKind

KIND_OF_FAULT = {
    "http429": ErrorKind.RATE_LIMITED,
    "http500": ErrorKind.SERVER,
    "reset": ErrorKind.CONNECTION,
    "garbage": ErrorKind.GARBAGE,
}


def strikes_calls(chaos: Chaos) -> bool:
    """Whether there is any such fault."""
    return any(getattr(chaos, fault) for fault in KIND_OF_FAULT)


def drawn_fault(chaos: Chaos) -> str | None:
    """The fault that strikes a call, by its field's name; None for most calls."""
    draw = random.random()
    for fault in KIND_OF_FAULT:
        draw -= getattr(chaos, fault)
        if draw < 0:
            return fault
    return None


def drawn_wait_s() -> float:
    """How long a 429 that was made up asks to wait, in seconds."""
    return random.uniform(0.05, 0.3)
