"""What several draws of each item say, as people read it: a line for each cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def times(cell: Mapping[str, Any]) -> str:
    """How often each item of a cell was asked; empty for once."""
    return f" × {cell['repeats']['epochs']}" if cell.get("repeats") else ""


def repeat_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    """For each cell whose items were asked several times: how alike the draws are, and how many of them are right."""
    for cell in scores["cells"]:
        repeats = cell.get("repeats")
        if not repeats or not repeats["majority"]:
            continue
        epochs = str(repeats["epochs"])
        where = f"{cell['model']} {cell['task']} {cell['variant']}".rstrip()
        yield (
            f"{where}: {epochs} draws of each item: consistency {_shown(repeats['consistency'])}, "
            f"majority {_shown(repeats['majority'])}, pass@{epochs} {_shown(repeats['pass@k'][epochs])}, "
            f"pass^{epochs} {_shown(repeats['pass^k'][epochs])}"
        )


def _shown(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "—"
    low, high = (100 * bound for bound in estimate["ci95"])
    return f"{100 * estimate['value']:.1f} % ({low:.1f} to {high:.1f})"
