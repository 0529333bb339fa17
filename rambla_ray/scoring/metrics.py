"""Metrics: from the samples of a cell to its numbers. Pure; nothing here knows where samples come from.

Samples come as columns, one array for each thing the metrics look at, because a run may hold a million of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rambla_ray.schema import Outcome
from rambla_ray.scoring.rambla import NULL, continuous_metrics, fewshot_bias, quality, rambla_metrics, relative_change
from rambla_ray.scoring.stats import Estimate, bootstrap_mean, mcnemar_exact, roc_auc, slope, wilson

CONTINUOUS = ("mse", "mae", "r_squared", "stats_pearsonr", "stats_spearmanr")  # of a model that gives scores

# Outcomes in which the model had its say, or had none because of its own limits: RAmBLA counts these as null.
NULL_IN_RAMBLA = frozenset({Outcome.UNPARSED, Outcome.EMPTY, Outcome.TRUNCATED, Outcome.REFUSED, Outcome.TOO_LONG})

SEED = 1234  # of every bootstrap
EXAMPLES = 3  # of answers on which the readers differ, kept per cell
EXAMPLE_CHARS = 200  # of each

CELL_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("root_id", "target", "label", "answer", "rambla_answer", "outcome")),
        *((name, pa.int64()) for name in ("prompt_tokens", "completion_tokens", "row")),
    ]
)

Mask = NDArray[np.bool_]
Places = NDArray[np.int64]
Texts = Callable[[Sequence[int]], Sequence[str]]


class Cell:
    """The samples of one cell as the metrics see them: columns of n rows, in one order whatever order they came in.

    Args:
        columns: `CELL_SCHEMA`. `label` is the dataset's own, `target` the right answer in this task; tokens are those
            of the model under test; `row` says where the sample's text can be found.

    `scored` and `correct`, n truth values, say of each sample whether it was scored, and whether it was also right.
    """

    def __init__(self, columns: pa.Table) -> None:
        order = pc.sort_indices(columns, sort_keys=[(name, "ascending") for name in CELL_SCHEMA.names])
        self._columns = columns.take(order).combine_chunks()
        self.scored: Mask = _mask(pc.equal(self["outcome"], Outcome.SCORED.value))
        self.correct: Mask = self.scored & _mask(pc.equal(self["answer"], self["target"]))

    def __len__(self) -> int:
        return int(self._columns.num_rows)

    def __getitem__(self, column: str) -> pa.Array:
        return self._columns[column].combine_chunks()


def _mask(values: pa.Array) -> Mask:
    found: Mask = values.to_numpy(zero_copy_only=False)
    return found


def cell_metrics(cell: Cell, labels: Sequence[str], texts: Texts) -> dict[str, Any]:
    """The numbers of one cell, without `paired`.

    `accuracy` is over scored samples; `coverage` says how many those are; `bounds` what the accuracy would be if
    everything not scored were wrong, or right. Where a model gave scores instead of answers, accuracy is None and
    `score` says how well they tell the labels apart.

    Args:
        cell: at least one sample.
        labels: what can be answered.
        texts: the last texts of samples, by their `row`; asked for a few only.
    """
    n, scored = len(cell), int(cell.scored.sum())
    outcomes = {entry["values"]: entry["counts"] for entry in cell["outcome"].value_counts().to_pylist()}
    lengths = cell["completion_tokens"].to_numpy()
    common = {
        "n": n,
        "outcomes": {outcome.value: outcomes.get(outcome.value, 0) for outcome in Outcome},
        "coverage": scored / n,
        "tokens": {"prompt": int(cell["prompt_tokens"].to_numpy().sum()), "completion": int(lengths.sum())},
        "lengths": quality(lengths[lengths > 0].tolist()),
    }
    known = _mask(pc.is_in(cell["answer"], value_set=pa.array(labels, pa.string())))
    if not known[cell.scored].all():
        return {**common, **_score_metrics(cell)}
    right = int(cell.correct.sum())
    value, interval = _accuracy(cell)
    return {
        **common,
        "accuracy": {"value": value, "ci95": interval, "bounds": [right / n, (right + n - scored) / n]},
        "label_bias": {label: _label_bias(cell, label) for label in labels},
        "readers": _readers(cell, texts),
        "rambla": _rambla_of(cell, labels),
    }


def _accuracy(cell: Cell) -> tuple[float | None, list[float] | None]:
    """The share of scored samples that are right, and its 95 % interval; None for both without any."""
    right, scored = int(cell.correct.sum()), int(cell.scored.sum())
    return (right / scored, list(wilson(right, scored))) if scored else (None, None)


def _rambla_of(cell: Cell, labels: Sequence[str]) -> dict[str, Any]:
    counted = pa.array([Outcome.SCORED.value, *NULL_IN_RAMBLA], pa.string())
    asked = pc.is_in(cell["outcome"], value_set=counted)
    targets = cell["label"].filter(asked).to_pylist()
    predictions = [answer or NULL for answer in cell["rambla_answer"].filter(asked).to_pylist()]
    found = rambla_metrics(targets, predictions, [*labels, NULL])
    return {**found, **fewshot_bias(targets, predictions, [*labels, NULL])} if found else found


def _score_metrics(cell: Cell) -> dict[str, Any]:
    values, positives = (
        cell[column].filter(pa.array(cell.scored)).cast(pa.float64()).to_numpy() for column in ("answer", "label")
    )
    area = roc_auc(positives, values, _items(cell["root_id"], cell.scored), SEED)
    return {
        "accuracy": {"value": None, "ci95": None, "bounds": None},
        "score": {"roc_auc": _estimate(area)},
        "rambla": continuous_metrics(values.tolist(), positives.tolist(), CONTINUOUS) if area else {},
    }


def _label_bias(cell: Cell, label: str) -> dict[str, Any] | None:
    """How much more often a label is given than it is right, in share of the scored samples."""
    given, right = (_mask(pc.equal(cell[column], label))[cell.scored] for column in ("answer", "target"))
    surplus = given.astype(np.float64) - right
    return _estimate(bootstrap_mean(surplus, _items(cell["root_id"], cell.scored), SEED))


def _items(root_ids: pa.Array, chosen: Mask | Places) -> Places:
    """A number for the item of each of the chosen rows, the same for the same item."""
    codes: Places = root_ids.dictionary_encode().indices.to_numpy()[chosen]
    return codes


def _readers(cell: Cell, texts: Texts) -> dict[str, Any]:
    """On how many texts the two readers differ, and some of them."""
    differ = np.flatnonzero(_mask(pc.not_equal(cell["answer"], cell["rambla_answer"])))
    shown = [{name: cell[name][place].as_py() for name in CELL_SCHEMA.names} for place in differ[:EXAMPLES].tolist()]
    return {
        "differ": len(differ),
        "examples": [
            {
                "root_id": row["root_id"][:EXAMPLE_CHARS],
                "text": text[:EXAMPLE_CHARS],
                "robust": row["answer"],
                "rambla": row["rambla_answer"],
            }
            for row, text in zip(shown, texts([row["row"] for row in shown]) if shown else (), strict=True)
        ],
    }


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    return {"value": found.value, "ci95": found.ci95 and list(found.ci95)} if found else None


def paired_metrics(cell: Cell, clean: Cell) -> dict[str, Any]:
    """How answers to the same items differ from those of the cell they are paired with.

    Only items scored in both count. `difference` is that of the accuracies, with a bootstrap interval over items;
    `mcnemar_p` the exact two-sided p of McNemar's test on right and wrong.
    """
    before, after = _pairs(clean, cell)
    was, is_now = clean.correct[before], cell.correct[after]
    to_wrong, to_right = int((was & ~is_now).sum()), int((is_now & ~was).sum())
    same = _mask(pc.equal(clean["answer"].take(pa.array(before)), cell["answer"].take(pa.array(after))))
    return {
        "n": len(after),
        "right_to_wrong": to_wrong,
        "wrong_to_right": to_right,
        "consistency": float(same.mean()) if len(after) else None,
        "difference": _difference(clean, cell),
        "mcnemar_p": mcnemar_exact(to_wrong, to_right) if len(after) else None,
    }


def variant_effects(variants: Mapping[str, Cell]) -> dict[str, Any]:
    """What changes from variant to variant of one task, on items scored in both.

    Args:
        variants: the cell of each variant (`n=10`), in the plan's order; the first is what others are compared with.

    Returns:
        `variants`: per variant its accuracy and its difference from the first, with a bootstrap interval over items;
        where variants are numbers also `slope`, the change of accuracy per unit, and RAmBLA's relative change.
    """
    names = list(variants)
    first = variants[names[0]]
    rows = []
    accuracies: dict[str, float | None] = {}
    for name, cell in variants.items():
        accuracies[name], interval = _accuracy(cell)
        rows.append(
            {
                "variant": name,
                "scored": int(cell.scored.sum()),
                "accuracy": accuracies[name],
                "ci95": interval,
                "pairs": len(_pairs(first, cell)[0]),
                "difference": _difference(first, cell) if name != names[0] else None,
            }
        )
    effects: dict[str, Any] = {"by": names[0].partition("=")[0], "compared_with": names[0], "variants": rows}
    if effects["by"] == "n":
        effects["slope"] = _slope({float(name.removeprefix("n=")): cell for name, cell in variants.items()})
        # RAmBLA had no clean variant: its series begins with one mutation
        series = [accuracy for name, accuracy in accuracies.items() if name != "n=0"]
        effects["rambla"] = relative_change({"recall": series})
    return effects


def _slope(cells: Mapping[float, Cell]) -> dict[str, Any] | None:
    scored = np.concatenate([cell.scored for cell in cells.values()])
    x = np.repeat(list(cells), [len(cell) for cell in cells.values()])
    y = np.concatenate([cell.correct for cell in cells.values()])
    items = _items(pa.concat_arrays([cell["root_id"] for cell in cells.values()]), scored)
    return _estimate(slope(x[scored], y[scored], items, SEED))


def _pairs(first: Cell, second: Cell) -> tuple[Places, Places]:
    """Where the samples of the same items stand that were scored in both: the places in the first, in the second."""
    in_first, in_second = np.flatnonzero(first.scored), np.flatnonzero(second.scored)
    wanted, there = second["root_id"].take(pa.array(in_second)), first["root_id"].take(pa.array(in_first))
    found = pc.index_in(wanted, value_set=there)
    return in_first[found.drop_null().to_numpy()], in_second[_mask(found.is_valid())]


def _difference(first: Cell, second: Cell) -> dict[str, Any] | None:
    before, after = _pairs(first, second)
    change = second.correct[after].astype(np.float64) - first.correct[before]
    return _estimate(bootstrap_mean(change, _items(second["root_id"], after), SEED))


def without_nan(value: Any, where: str, reasons: dict[str, str]) -> Any:
    """`value` with every NaN or infinity as None, and `reasons` told where they stood."""
    if isinstance(value, float) and not math.isfinite(value):
        reasons[where] = "0/0 is undefined"
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(inner, f"{where}.{key}" if where else key, reasons) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner, f"{where}[{place}]", reasons) for place, inner in enumerate(value)]
    return value
