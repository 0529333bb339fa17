"""What recorded runs and today's code must agree on, in whatever way samples are scored by now."""

from __future__ import annotations

from typing import Any


def lasting(metrics: Any) -> list[Any]:
    """What every way of scoring so far makes of the same samples, where no judge answers."""
    names = ("model", "task", "variant", "n", "outcomes", "coverage", "tokens", "readers", "rambla")
    cells = [
        [cell[name] for name in names] + [cell["accuracy"]["value"], cell["lengths"]] for cell in metrics["cells"]
    ]
    return [*cells, *([effect["task"], effect["by"]] for effect in metrics["effects"])]
