"""What changes from variant to variant of a task, as metrics.json holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rambla_ray.scoring import metrics, original
from rambla_ray.scoring.cells import Cell
from rambla_ray.scoring.phrasings import phrasings
from rambla_ray.scoring.undefined import without_nan


def effects_of(
    model: str,
    task: str,
    cells: Mapping[str, Cell],
    variants: Sequence[str],
    numbers_of_cells: Sequence[Mapping[str, Any]],
    *,
    are_phrasings: bool = False,
) -> list[dict[str, Any]]:
    """What changes from variant to variant of a task, in a list of one.

    The list is empty with fewer than two variants, or without a sample of the first, which others are compared with;
    of phrasings also where the model gives scores, not answers.

    Args:
        model: the model under test.
        task: its name.
        cells: those of the variants that have samples, in the plan's order.
        variants: all of the plan.
        numbers_of_cells: what metrics.json holds of each of `cells`.
        are_phrasings: the variants are phrasings of the same prompt.
    """
    if len(cells) < 2 or variants[0] not in cells:
        return []
    if are_phrasings and any("score" in numbers for numbers in numbers_of_cells):
        return []
    reasons: dict[str, str] = {}
    effects = metrics.variant_effects(cells, "phrasing" if are_phrasings else "")
    if are_phrasings:
        effects["phrasings"] = phrasings(cells)
    if effects["by"] == "n":
        rambla = {numbers["variant"]: numbers["rambla"] for numbers in numbers_of_cells}
        effects["rambla"] = _relative_changes(rambla, variants, reasons)
    numbers = without_nan(effects, "", reasons)
    return [{"model": model, "task": task, **numbers, "null_reasons": reasons}]


def _relative_changes(
    rambla: Mapping[str, Mapping[str, Any]], variants: Sequence[str], reasons: dict[str, str]
) -> dict[str, list[float]]:
    """RAmBLA's relative changes, from its own numbers of each variant; empty, with a reason, where one has none.

    The original has no clean variant: its series begins with the least mutated one.
    """
    mutated = [variant for variant in variants if variant != "n=0"]
    missing = [variant for variant in mutated if not rambla.get(variant)]
    if missing:
        reasons["rambla"] = f"variant {missing[0]} has no sample that RAmBLA's numbers hold"
        return {}
    return original.changes([rambla[variant] for variant in mutated])
