"""Scoring: from samples/ alone to what metrics.json holds, one task of one target at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rambla_ray.results.samples import StoredTask, read_spec
from rambla_ray.schema import Outcome, Role
from rambla_ray.scoring import metrics
from rambla_ray.scoring.metrics import CELL_SCHEMA, Cell
from rambla_ray.scoring.stats import holm
from rambla_ray.storage import Folder

TASKS_IN_MEMORY = 4  # So a task that others are compared with is not read again for each of them.

_SCORED_COLUMNS = [
    *("root_id", "variant", "target", "label", "answer", "rambla_answer", "outcome"),
    *(f"steps.list.element.{name}" for name in ("role", "prompt_tokens", "completion_tokens")),
]


class ScoredTask(StoredTask):
    """The stored samples of one task of a target as cells, which the metrics take."""

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """One cell per variant."""
        table = self.read(_SCORED_COLUMNS)
        return {} if table is None else _cells(table)

    @cached_property
    def read_by_reader(self) -> Counter[str]:
        """Per variant, how many scored samples have their answer from the reader."""
        table = self.read(["variant", "outcome", "steps.list.element.role"])
        if table is None:
            return Counter()
        steps = table["steps"].combine_chunks()
        is_reader = pc.equal(steps.flatten().field("role"), Role.READER.value)
        asked = table.take(pc.list_parent_indices(steps).filter(is_reader))
        return Counter(asked["variant"].filter(pc.equal(asked["outcome"], Outcome.SCORED.value)).to_pylist())


def _cells(table: pa.Table) -> dict[str, Cell]:
    """The samples of a file as cells, by variant; `table` has `_SCORED_COLUMNS`."""
    steps = table["steps"].combine_chunks()
    step_rows, flat = pc.list_parent_indices(steps).to_numpy(), steps.flatten()
    is_target = pc.equal(flat.field("role"), Role.TARGET.value).to_numpy(zero_copy_only=False)
    columns = {name: table[name] for name in CELL_SCHEMA.names if name in table.column_names}
    for name in ("prompt_tokens", "completion_tokens"):
        weights = flat.field(name).to_numpy() * is_target
        sums = np.bincount(step_rows, weights=weights, minlength=table.num_rows)
        columns[name] = pa.array(sums.astype(np.int64))
    columns["row"] = pa.array(np.arange(table.num_rows))
    rows = pa.table(columns).select(CELL_SCHEMA.names)
    return {
        variant: Cell(rows.filter(pc.equal(table["variant"], variant)))
        for variant in table["variant"].unique().to_pylist()
    }


def score(folder: Folder) -> dict[str, Any]:
    """What metrics.json holds: every cell in the plan's order, and what varies inside a task.

    Cells without a sample are left out. `partial` says how many samples there are of how many, and is None when
    all are there.

    Args:
        folder: samples/.

    Raises:
        UserError: there are no samples.
    """
    spec = read_spec(folder)
    stored = lru_cache(TASKS_IN_MEMORY)(lambda model, task: ScoredTask(folder, model, task))
    cells: list[dict[str, Any]] = []
    effects: list[dict[str, Any]] = []
    for model in spec["models"]:
        first = len(cells)
        for task, task_spec in spec["tasks"].items():
            samples = stored(model, task)
            variants = {
                variant: samples.cells[variant] for variant in task_spec["variants"] if variant in samples.cells
            }
            for variant, cell in variants.items():
                numbers, reasons = _own_numbers(cell, task_spec["labels"], samples)
                if Role.READER in spec["roles"]:
                    numbers["read_by"] = _read_by(cell, samples.read_by_reader[variant])
                pair_with = task_spec["pair_with"]
                if pair_with and pair_with != f"{task}/{variant}":
                    other, _, at = pair_with.partition("/")
                    clean = stored(model, other).cells.get(at) if other in spec["tasks"] else None
                    numbers["paired"] = _paired(cell, clean, pair_with, spec["tasks"], reasons)
                cells.append({**numbers, "model": model, "task": task, "variant": variant, "null_reasons": reasons})
            effects += _effects(model, task, variants, task_spec["variants"])
        _adjust(cells[first:])
    return {
        "synthetic": spec["synthetic"],
        "roles": spec["roles"],
        "partial": _partial(sum(cell["n"] for cell in cells), spec),
        "cells": cells,
        "effects": effects,
    }


def _own_numbers(cell: Cell, labels: Sequence[str], stored: ScoredTask) -> tuple[dict[str, Any], dict[str, str]]:
    """A cell's numbers without its pair, and why some are null."""
    numbers = {**metrics.cell_metrics(cell, labels, stored.texts), "paired": None}
    reasons: dict[str, str] = {}
    if numbers["accuracy"]["value"] is None:
        reasons["accuracy.value"] = (
            "the model gives scores, not answers" if "score" in numbers else "no sample was scored"
        )
    return metrics.without_nan(numbers, "", reasons), reasons


def _read_by(cell: Cell, by_reader: int) -> dict[str, int]:
    """How many of a cell's answers the rules read, and how many the reader."""
    return {"rules": int(cell.scored.sum()) - by_reader, "reader": by_reader}


def _paired(
    cell: Cell, clean: Cell | None, pair_with: str, tasks: Mapping[str, Any], reasons: dict[str, str]
) -> dict[str, Any] | None:
    """The comparison of a cell with its pair; None, with an entry in `reasons`, where the pair has no samples."""
    if clean is None:
        other, _, at = pair_with.partition("/")
        planned = other in tasks and at in tasks[other]["variants"]
        reasons["paired"] = f"task {pair_with} {'has no samples yet' if planned else 'is not in this run'}"
        return None
    paired: dict[str, Any] = {"with": pair_with, **metrics.paired_metrics(cell, clean)}
    return paired


def _adjust(cells: Sequence[Mapping[str, Any]]) -> None:
    """Add to each comparison of a model's cells its p-value adjusted over all of them (Holm)."""
    pairs = {
        str(number): cell["paired"]
        for number, cell in enumerate(cells)
        if cell["paired"] and cell["paired"]["mcnemar_p"] is not None
    }
    for number, adjusted in holm({number: pair["mcnemar_p"] for number, pair in pairs.items()}).items():
        pairs[number]["mcnemar_p_holm"] = adjusted


def _effects(model: str, task: str, cells: Mapping[str, Cell], variants: Sequence[str]) -> list[dict[str, Any]]:
    """What changes from variant to variant of a task, in a list of one.

    The list is empty with fewer than two variants, or without a sample of the first, which others are compared with.
    """
    if len(cells) < 2 or variants[0] not in cells:
        return []
    reasons: dict[str, str] = {}
    numbers = metrics.without_nan(metrics.variant_effects(cells), "", reasons)
    return [{"model": model, "task": task, **numbers, "null_reasons": reasons}]


def _partial(samples: int, spec: Mapping[str, Any]) -> dict[str, int] | None:
    """How many samples there are of how many; None when all are there."""
    per_target = sum(sum(task_spec["expected"].values()) for task_spec in spec["tasks"].values())
    expected = per_target * len(spec["models"])
    return {"samples": samples, "expected": expected} if samples < expected else None
