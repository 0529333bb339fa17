"""How far the probabilities of answers by likelihood can be relied on, in a line for each cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def calibration_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    """A line for each cell of metrics.json that was answered by likelihood."""
    for cell in scores["cells"]:
        if found := cell.get("calibration"):
            numbers = (
                f"Brier {_estimate(found['brier'])}",
                f"ECE {_number(found['ece']['value'])}",
                f"AUROC {_estimate(found['auroc'])}",
                f"AURC {_number(found['risk_coverage']['aurc'])}",
            )
            where = f"{cell['model']} {cell['task']} {cell['variant']}".rstrip()
            yield f"{where}: {', '.join(numbers)}, of {found['n']} answers by likelihood"


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"


def _estimate(found: Mapping[str, Any] | None) -> str:
    """A number and its interval, as far as there is one."""
    if found is None or found["value"] is None:
        return "—"
    interval = found["ci95"]
    return _number(found["value"]) + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
