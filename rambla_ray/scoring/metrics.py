"""Metrics: from the samples of a cell to its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rambla_ray.schema import Outcome
from rambla_ray.scoring import original
from rambla_ray.scoring.cells import CELL_SCHEMA, Cell, Mask, Rows, as_mask
from rambla_ray.scoring.rambla import quality
from rambla_ray.scoring.significance import mcnemar_exact
from rambla_ray.scoring.stats import Estimate, mean, no_difference, roc_auc, slope
from rambla_ray.scoring.undefined import Undefined

EXAMPLES = 3  # So many answers on which the readers differ are kept per cell.
EXAMPLE_CHARS = 200  # A kept answer is cut at so many characters.
NO_PAIR = "no item was scored in both"
OTHER_TARGETS = Undefined("not adjusted: the right answers are not the pair's, so that flips mean another thing")
JUDGED = Undefined("not adjusted: a judge gives one of the two answers, so that flips may be the judge's")
COMPARED_WITH = "it is what the others are compared with"

Texts = Callable[[Sequence[int]], Sequence[str]]


def cell_metrics(cell: Cell, labels: Sequence[str], texts: Texts, judge: str = "") -> dict[str, Any]:
    """The numbers of one cell, without `paired`.

    `accuracy` is over scored samples; `coverage` says how many those are; `bounds` what the accuracy would be if
    everything not scored were wrong, or right. Where a model gave scores instead of answers, accuracy is undefined and
    `score` says how well they tell the labels apart.

    Args:
        cell: at least one sample.
        labels: the possible answers.
        texts: returns the last texts of samples, by their `row`; it is called for a few only.
        judge: the kind of stage by which a judge answers; empty where none does.
    """
    n, scored = len(cell), int(cell.scored.sum())
    outcomes = {entry["values"]: entry["counts"] for entry in cell["outcome"].value_counts().to_pylist()}
    lengths = cell["completion_tokens"].to_numpy()
    common = {
        "n": n,
        "outcomes": {outcome.value: outcomes.get(outcome.value, 0) for outcome in Outcome},
        "coverage": scored / n,
        "tokens": {"prompt": int(cell["prompt_tokens"].to_numpy().sum()), "completion": int(lengths.sum())},
        "lengths": _lengths(cell),
    }
    known = as_mask(pc.is_in(cell["answer"], value_set=pa.array(labels, pa.string())))
    if not known[cell.scored].all():
        return {**common, **_score_metrics(cell)}
    right = int(cell.correct.sum())
    value, interval = _accuracy(cell)
    return {
        **common,
        "accuracy": {"value": value, "ci95": interval, "bounds": [right / n, (right + n - scored) / n]},
        "label_bias": {label: _label_bias(cell, label) for label in labels},
        "readers": _readers(cell, texts),
        "rambla": original.classification(cell.first_draws(), labels, judge),
    }


def _lengths(cell: Cell) -> dict[str, float] | dict[str, Undefined]:
    """Tokens of the target's answers, an empty one having 0; undefined where the model reports no tokens at all."""
    lengths = cell["completion_tokens"].to_numpy()[as_mask(cell["target_answered"])]
    if not lengths.any():
        return dict.fromkeys(quality([]), Undefined("no answer of the target has a number of tokens"))
    return quality(lengths.tolist())


def _accuracy(cell: Cell) -> tuple[float | Undefined, list[float] | Undefined]:
    """The share of scored samples that are right, and its 95 % interval."""
    share = mean(cell.correct[cell.scored], _items(cell["root_id"], cell.scored))
    if share is None:
        return Undefined("no sample was scored"), Undefined("no sample was scored")
    return share.value, list(share.ci95)


def _score_metrics(cell: Cell) -> dict[str, Any]:
    """How well scores, given instead of answers, tell the labels apart."""
    values, positives = (
        cell[column].filter(pa.array(cell.scored)).cast(pa.float64()).to_numpy() for column in ("answer", "label")
    )
    area = roc_auc(positives, values, _items(cell["root_id"], cell.scored))
    no_answers = Undefined("the model gives scores, not answers")
    return {
        "accuracy": dict.fromkeys(("value", "ci95", "bounds"), no_answers),
        "score": {"roc_auc": _estimate(area, "all scored samples have the same label")},
        "rambla": original.scores(cell.first_draws()),
    }


def _label_bias(cell: Cell, label: str) -> dict[str, Any] | Undefined:
    """How much more often a label is answered than it is right, as a share of the scored samples."""
    answered, right = (as_mask(pc.equal(cell[column], label))[cell.scored] for column in ("answer", "target"))
    surplus = answered.astype(np.float64) - right
    return _estimate(mean(surplus, _items(cell["root_id"], cell.scored), -1, 1), "no sample was scored")


def _items(root_ids: pa.Array, chosen: Mask | Rows) -> Rows:
    """The number of the item of each chosen row; rows of the same item have the same number."""
    codes: Rows = root_ids.dictionary_encode().indices.to_numpy()[chosen]
    return codes


def _readers(cell: Cell, texts: Texts) -> dict[str, Any]:
    """The number of texts on which the two readers differ, and some examples."""
    differ = np.flatnonzero(as_mask(pc.not_equal(cell["answer"], cell["rambla_answer"])))
    shown = [{name: cell[name][row].as_py() for name in CELL_SCHEMA.names} for row in differ[:EXAMPLES].tolist()]
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


def _estimate(estimate: Estimate | None, reason: str) -> dict[str, Any] | Undefined:
    return {"value": estimate.value, "ci95": list(estimate.ci95)} if estimate else Undefined(reason)


def paired_metrics(cell: Cell, clean: Cell, *, same_judge: bool = True) -> dict[str, Any]:
    """How answers to the same items differ from those of the cell they are paired with.

    Only items scored in both count, each draw with the one of the same epoch. `difference` is that of the accuracies,
    with its interval; `mcnemar_p` the exact two-sided p of McNemar's test on right and wrong, or where items are asked
    several times that of `stats.no_difference` over items. `mcnemar_p_holm` is the same p, for the caller to adjust,
    where the test asks what it asks elsewhere: does another prompt for the same right answer change the target's
    accuracy?

    Args:
        cell: the samples.
        clean: those they are compared with.
        same_judge: whether no judge answers, or the same kind of judge in both.
    """
    before, after = _pairs(clean, cell)
    was, is_now = clean.correct[before], cell.correct[after]
    to_wrong, to_right = int((was & ~is_now).sum()), int((is_now & ~was).sum())
    same_answer, same_target = (
        as_mask(pc.equal(clean[column].take(pa.array(before)), cell[column].take(pa.array(after))))
        for column in ("answer", "target")
    )
    p = _no_change(was, is_now, _items(cell["root_id"], after)) if len(after) else Undefined(NO_PAIR)
    return {
        "n": len(after),
        "right_to_wrong": to_wrong,
        "wrong_to_right": to_right,
        "consistency": float(same_answer.mean()) if len(after) else Undefined(NO_PAIR),
        "difference": _difference(clean, cell),
        "mcnemar_p": p,
        "mcnemar_p_holm": OTHER_TARGETS if not same_target.all() else p if same_judge else JUDGED,
    }


def _no_change(was: Mask, is_now: Mask, items: Rows) -> float:
    """The p of no change of accuracy over at least one pair."""
    if len(np.unique(items)) < len(items):
        return no_difference(is_now.astype(np.float64) - was, items).p
    return mcnemar_exact(int((was & ~is_now).sum()), int((is_now & ~was).sum()))


def variant_effects(variants: Mapping[str, Cell], by: str = "") -> dict[str, Any]:
    """What changes from variant to variant of one task, on items scored in both.

    Args:
        variants: the cell of each variant (`n=10`), in the plan's order; the first is what others are compared with.
        by: what varies, where the names of the variants do not say it.

    Returns:
        `variants`: per variant its accuracy and its difference from the first, each with its interval; where variants
        are numbers also `slope`, the change of accuracy per unit.
    """
    names = list(variants)
    first = variants[names[0]]
    rows = []
    for name, cell in variants.items():
        accuracy, interval = _accuracy(cell)
        rows.append(
            {
                "variant": name,
                "scored": int(cell.scored.sum()),
                "accuracy": accuracy,
                "ci95": interval,
                "pairs": len(_pairs(first, cell)[0]),
                "difference": Undefined(COMPARED_WITH) if name == names[0] else _difference(first, cell),
            }
        )
    effects: dict[str, Any] = {"by": by or names[0].partition("=")[0], "compared_with": names[0], "variants": rows}
    if effects["by"] == "n":
        effects["slope"] = _slope({float(name.removeprefix("n=")): cell for name, cell in variants.items()})
    return effects


def _slope(cells: Mapping[float, Cell]) -> dict[str, Any] | Undefined:
    """The change of accuracy per mutation, from the cells by their number of mutations."""
    scored = np.concatenate([cell.scored for cell in cells.values()])
    x = np.repeat(list(cells), [len(cell) for cell in cells.values()])
    y = np.concatenate([cell.correct for cell in cells.values()])
    items = _items(pa.concat_arrays([cell["root_id"] for cell in cells.values()]), scored)
    return _estimate(slope(x[scored], y[scored], items), "fewer than two variants have a scored sample")


def _pairs(first: Cell, second: Cell) -> tuple[Rows, Rows]:
    """The draws of items that were scored in both: their rows in the first cell, and in the second."""
    in_first, in_second = np.flatnonzero(first.scored), np.flatnonzero(second.scored)
    matches = second.draws.take(in_second).places_in(first.draws.take(in_first))
    return in_first[matches.drop_null().to_numpy()], in_second[as_mask(matches.is_valid())]


def _difference(first: Cell, second: Cell) -> dict[str, Any] | Undefined:
    """The accuracy of the second cell less that of the first, on the items that were scored in both."""
    before, after = _pairs(first, second)
    change = second.correct[after].astype(np.float64) - first.correct[before]
    return _estimate(mean(change, _items(second["root_id"], after), -1, 1), NO_PAIR)
