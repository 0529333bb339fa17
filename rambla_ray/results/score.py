"""Scoring: from samples/ alone to what metrics.json holds, one task of one target at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rambla_ray.results.effects import effects_of
from rambla_ray.results.panel_votes import Panels
from rambla_ray.results.samples import StoredTask, read_spec
from rambla_ray.results.settled import settle
from rambla_ray.results.step_counts import STEP_NAMES, StepCounts, count_steps, of_several_judges
from rambla_ray.schema import STEP_TYPE, Outcome, Role
from rambla_ray.scoring import comparison, metrics
from rambla_ray.scoring.calibration import cell_calibration
from rambla_ray.scoring.cells import CELL_SCHEMA, Cell
from rambla_ray.scoring.comparison import Marks
from rambla_ray.scoring.correction import Tally, corrected, described, from_stored
from rambla_ray.scoring.repeats import cell_repeats
from rambla_ray.scoring.significance import holm
from rambla_ray.scoring.undefined import Undefined, explained
from rambla_ray.storage import Folder

# The number of the way in which samples are scored, which stands in metrics.json; where none does, it is 1. A change
# that makes other numbers of the same samples raises it.
SCORING = 5
TASKS_IN_MEMORY = 4  # So a task that others are compared with is not read again for each of them.

_SCORED_COLUMNS = [
    *("root_id", "epoch", "variant", "target", "label", "answer", "rambla_answer", "outcome"),
    *(f"steps.list.element.{name}" for name in (*STEP_NAMES, "prompt_tokens", "completion_tokens")),
]


class ScoredTask(StoredTask):
    """The stored samples of one task of a target as cells, which the metrics take.

    Args:
        folder: samples/.
        target: the model under test.
        task: its name.
        scores_against: the field whose number scores are measured against; None where that is the label.
    """

    def __init__(self, folder: Folder, target: str, task: str, scores_against: str | None) -> None:
        super().__init__(folder, target, task)
        self._scores_against = scores_against

    @property
    def cells(self) -> dict[str, Cell]:
        """One cell per variant."""
        return self._read[0]

    @property
    def step_counts(self) -> Mapping[str, StepCounts]:
        """Per variant, what is counted of its steps."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[dict[str, Cell], Mapping[str, StepCounts]]:
        field = self._scores_against
        table = self.read([*_SCORED_COLUMNS, *(["fields"] if field else [])])
        if table is None:
            return {}, {}
        steps = _without_reader(table["steps"].combine_chunks())
        return _cells(table, steps, field), count_steps(table["variant"], steps)

    def choice_probabilities(self, choices: int) -> NDArray[np.float64]:
        """The probabilities of a task's choices, (samples of the file, choices); NaN where a sample has none."""
        table = self.read(["steps.list.element.choice_probabilities"])
        steps = table["steps"].combine_chunks() if table is not None else pa.array([], pa.list_(STEP_TYPE))
        lists = steps.flatten().field("choice_probabilities")
        complete = pc.equal(pc.list_value_length(lists), choices)
        found = np.full((len(steps), choices), np.nan)
        rows = pc.list_parent_indices(steps).filter(complete).to_numpy()
        found[rows] = lists.filter(complete).flatten().to_numpy().reshape(-1, choices)
        return found

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


def _cells(table: pa.Table, steps: pa.Array, scores_against: str | None) -> dict[str, Cell]:
    """The samples of a file as cells, by variant; `table` has `_SCORED_COLUMNS`, and `fields` where one is named."""
    columns = {name: table[name] for name in CELL_SCHEMA.names if name in table.column_names}
    columns |= _of_steps(steps)
    columns["row"] = pa.array(np.arange(table.num_rows))
    columns["scores_against"] = pa.repeat("", table.num_rows)
    if scores_against:
        fields = map(json.loads, table["fields"].to_pylist())
        columns["scores_against"] = pa.array([item.get(scores_against, "") for item in fields], pa.string())
    rows = pa.table(columns).select(CELL_SCHEMA.names)
    return {
        variant: Cell(rows.filter(pc.equal(table["variant"], variant)))
        for variant in table["variant"].unique().to_pylist()
    }


def _without_reader(steps: pa.Array) -> pa.Array:
    """The steps of the tasks' own stages: RAmBLA's numbers do not depend on whether the reader's call failed."""
    flat = steps.flatten()
    is_stage = pc.not_equal(flat.field("role"), Role.READER.value)
    counts = np.bincount(pc.list_parent_indices(steps).filter(is_stage).to_numpy(), minlength=len(steps))
    return pa.ListArray.from_arrays(pa.array([0, *np.cumsum(counts)], pa.int32()), flat.filter(is_stage))


def _of_steps(steps: pa.Array) -> dict[str, pa.Array]:
    """What a cell holds of each sample's steps: the target's tokens, whether it answered, and the last one's error."""
    counts, flat = pc.list_value_length(steps).to_numpy(), steps.flatten()
    step_rows = pc.list_parent_indices(steps).to_numpy()
    is_target = pc.equal(flat.field("role"), Role.TARGET.value).to_numpy(zero_copy_only=False)
    has_answer = pc.equal(flat.field("error_kind"), "").to_numpy(zero_copy_only=False)

    def summed(weights: NDArray[Any]) -> NDArray[np.int64]:
        return np.bincount(step_rows, weights=weights, minlength=len(steps)).astype(np.int64)

    last = pa.array(np.cumsum(counts) - 1, mask=counts == 0)
    of_panel = of_several_judges(flat.field("role"), flat.field("model")).to_numpy(zero_copy_only=False)
    was_judged = pa.array(summed(of_panel & has_answer) > 0)  # By any of several judges, the last or not.
    return {
        **{
            name: pa.array(summed(flat.field(name).to_numpy() * is_target))
            for name in ("prompt_tokens", "completion_tokens")
        },
        "target_answered": pa.array(summed(is_target & has_answer) > 0),
        "error_kind": pc.if_else(was_judged, "", flat.field("error_kind").take(last).fill_null("")),
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
    stored = lru_cache(TASKS_IN_MEMORY)(
        lambda model, task: ScoredTask(folder, model, task, spec["tasks"][task].get("scores_against"))
    )
    panels, calibration = Panels(spec["roles"]), from_stored(spec.get("judge_calibration", {}).get("labels", {}))
    cells: list[dict[str, Any]] = []
    effects: list[dict[str, Any]] = []
    for model in spec["models"]:
        for task, task_spec in spec["tasks"].items():
            samples = stored(model, task)
            variants = {
                variant: samples.cells[variant] for variant in task_spec["variants"] if variant in samples.cells
            }
            for variant, cell in variants.items():
                own = metrics.cell_metrics(cell, task_spec["labels"], samples.texts, task_spec.get("judge", ""))
                own = samples.step_counts[variant].added_to(own)
                if Role.READER in spec["roles"]:
                    own["read_by"] = _read_by(cell, samples.read_by_reader[variant])
                if choice_labels := task_spec.get("choice_labels"):
                    chosen = samples.choice_probabilities(len(choice_labels))
                    own["calibration"] = cell_calibration(cell, chosen, choice_labels, task_spec["labels"])
                own |= panels.add(samples, cell, task_spec)
                if calibration and task_spec.get("judge") and len(set(task_spec["labels"])) == 2:
                    own["corrected"] = corrected(cell, calibration, task_spec["labels"])
                if (epochs := task_spec.get("epochs", 1)) > 1:
                    own["repeats"] = cell_repeats(cell, task_spec["labels"], epochs)
                paired = _paired(cell, task, variant, spec["tasks"], partial(stored, model))
                cells.append(explained({"model": model, "task": task, "variant": variant, **own, "paired": paired}))
            effects += effects_of(
                *(model, task, variants, task_spec["variants"], cells[-len(variants) :]),
                are_phrasings=task_spec.get("phrasings", False),
            )
    _adjust(cells)
    scores = {
        **explained({"partial": _partial(sum(cell["n"] for cell in cells), spec)}),
        "scoring": SCORING,
        "synthetic": spec["synthetic"],
        "roles": spec["roles"],
        "cells": cells,
        "effects": effects,
        "comparisons": _comparisons(spec, stored),
        **panels.of_run(),
        **_judge_calibration(spec, calibration),
    }
    if "until" in spec:
        settle(scores, spec, lambda model, task: stored(model, task).cells)
    return scores


def _judge_calibration(spec: Mapping[str, Any], calibration: Mapping[str, Tally]) -> dict[str, Any]:
    """How often the judge is right, by right label, and how that is known, under its key; empty where it is not."""
    if not calibration:
        return {}
    numbers = {label: described(tally) for label, tally in calibration.items()}
    return {"judge_calibration": {**spec["judge_calibration"], "labels": numbers}}


def _comparisons(spec: Mapping[str, Any], stored: Callable[[str, str], ScoredTask]) -> list[dict[str, Any]]:
    """The comparisons of the run's models, each two of them or each with the baseline."""
    pairs = comparison.pairs_of(spec["models"], spec.get("baseline"))
    for task, task_spec in spec["tasks"].items() if pairs else ():
        cells = {model: stored(model, task).cells for model in spec["models"]}
        marks = {
            model: {variant: Marks.of(cell, task_spec["labels"]) for variant, cell in variants.items()}
            for model, variants in cells.items()
        }
        for pair in pairs:
            a, b = marks[pair.a], marks[pair.b]
            for variant in (variant for variant in task_spec["variants"] if variant in a and variant in b):
                pair.add(task, variant, a[variant], b[variant])
    return [explained(entry) for entry in comparison.adjusted(entry for pair in pairs for entry in pair.entries())]


def _read_by(cell: Cell, by_reader: int) -> dict[str, int]:
    """How many of a cell's answers the rules read, and how many the reader."""
    return {"rules": int(cell.scored.sum()) - by_reader, "reader": by_reader}


def _paired(
    cell: Cell, task: str, variant: str, tasks: Mapping[str, Any], stored: Callable[[str], ScoredTask]
) -> dict[str, Any] | Undefined:
    """The comparison of a cell with the one its task names; undefined where that is none, itself, or without samples.

    Args:
        cell: the samples.
        task: its task.
        variant: its variant.
        tasks: how each task of the run is scored.
        stored: returns the samples of a task by its name, of the same target.
    """
    pair_with = tasks[task]["pair_with"]
    if not pair_with:
        return Undefined("the task is not compared with another")
    if pair_with == f"{task}/{variant}":
        return Undefined(metrics.COMPARED_WITH)
    other, _, at = pair_with.partition("/")
    if other not in tasks or at not in tasks[other]["variants"]:
        return Undefined(f"task {pair_with} is not in this run")
    clean = stored(other).cells.get(at)
    if clean is None:
        return Undefined(f"task {pair_with} has no samples yet")
    same_judge = tasks[task].get("judge") == tasks[other].get("judge")
    return {"with": pair_with, **metrics.paired_metrics(cell, clean, same_judge=same_judge)}


def _adjust(cells: Sequence[Mapping[str, Any]]) -> None:
    """Adjust the p-values of all comparisons of the run that test the same, whatever their model (Holm)."""
    pairs = {
        str(number): cell["paired"]
        for number, cell in enumerate(cells)
        if cell["paired"] and cell["paired"]["mcnemar_p_holm"] is not None
    }
    for number, adjusted in holm({number: pair["mcnemar_p"] for number, pair in pairs.items()}).items():
        pairs[number]["mcnemar_p_holm"] = adjusted


def _partial(samples: int, spec: Mapping[str, Any]) -> dict[str, int] | Undefined:
    """How many samples there are of how many; undefined when all are there."""
    per_target = sum(sum(task_spec["expected"].values()) for task_spec in spec["tasks"].values())
    expected = per_target * len(spec["models"])
    if samples >= expected:
        return Undefined("every sample is there")
    return {"samples": samples, "expected": expected}
