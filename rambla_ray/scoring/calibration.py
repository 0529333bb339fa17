"""How far probabilities of answers can be relied on: Brier score, calibration error, ROC areas, and risk by coverage.

The probabilities are those of a task's choices if one of them is the answer, and where several choices stand for one
label, their sum. The confidence of an answer is the probability of the label that was answered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rambla_ray.scoring.cells import Cell, as_mask
from rambla_ray.scoring.stats import mean, roc_auc
from rambla_ray.scoring.undefined import Undefined

Floats = NDArray[np.float64]
Numbers = NDArray[np.integer[Any]]

BINS = 10  # Of confidences, equally wide.
COVERAGES = tuple(share / 10 for share in range(1, 11))  # The shares of answers of which the curve has the risk.
NOTHING = Undefined("no sample with likelihoods was scored")
EMPTY_BIN = Undefined("no answer has such a confidence")


def by_label(choices: Floats, choice_labels: Sequence[str], labels: Sequence[str]) -> Floats:
    """The probability of each label, (samples, labels), from those of the choices, (samples, choices)."""
    stands_for = np.array([[label == own for label in labels] for own in choice_labels], dtype=np.float64)
    return np.asarray(choices @ stands_for, dtype=np.float64)


def cell_calibration(
    cell: Cell, choices: Floats, choice_labels: Sequence[str], labels: Sequence[str]
) -> dict[str, Any]:
    """The numbers of one cell, from its scored samples that have probabilities.

    Args:
        cell: the samples.
        choices: the probability of each choice, (rows, choices), by the `row` of a sample; NaN where it has none.
        choice_labels: the label that each choice stands for.
        labels: the possible answers.
    """
    own = choices[cell["row"].to_numpy()]
    known = pa.array(labels, pa.string())
    kept = cell.scored & np.isfinite(own).all(axis=1)
    for name in ("answer", "target"):
        kept &= as_mask(pc.is_in(cell[name], value_set=known))
    answered, right = (
        pc.index_in(cell[name].filter(pa.array(kept)), value_set=known).to_numpy() for name in ("answer", "target")
    )
    items = cell["root_id"].dictionary_encode().indices.to_numpy()[kept]
    return calibration(by_label(own[kept], choice_labels, labels), answered, right, labels, items)


def calibration(
    table: Floats, answered: Numbers, right: Numbers, labels: Sequence[str], items: Numbers
) -> dict[str, Any]:
    """What metrics.json holds of these n samples.

    Args:
        table: the probability of each label, (n, labels).
        answered: the number of the label that was answered.
        right: the number of the right label.
        labels: the possible answers.
        items: which item a sample is of: those of one item are not independent.
    """
    confidence = table[np.arange(len(table)), answered]
    correct = (answered == right).astype(np.float64)
    return {
        "n": len(table),
        "brier": brier(table, right, items),
        "ece": calibration_error(confidence, correct),
        "auroc": roc_areas(table, right, labels, items),
        "risk_coverage": risk_coverage(confidence, correct, items),
    }


def brier(table: Floats, right: Numbers, items: Numbers) -> dict[str, Any] | Undefined:
    """The mean over samples of the sum over labels of (p - o)², o being 1 for the right label and 0 for others.

    That is the score as Brier (1950) has it, for any number of labels: from 0, where each right label has probability
    1, to 2. For two labels it is twice what scikit-learn's `brier_score_loss` gives unless asked otherwise.
    """
    happened = np.eye(table.shape[1])[right]
    estimate = mean(((table - happened) ** 2).sum(axis=1), items, 0, 2)
    return {"value": estimate.value, "ci95": list(estimate.ci95)} if estimate else NOTHING


def calibration_error(confidence: Floats, correct: Floats) -> dict[str, Any]:
    """The expected calibration error: |accuracy - mean confidence|, over bins, weighted by their counts.

    As Guo et al. (2017) have it, after Naeini et al. (2015): `BINS` bins of equal width, each without its lower end
    and with its upper one, except that the first has both.

    Args:
        confidence: n probabilities, of what was answered.
        correct: n times 1 for a right answer, 0 for a wrong one.
    """
    edges = np.arange(BINS + 1) / BINS
    bin_of = np.searchsorted(edges[1:-1], confidence, side="left")
    bins, error = [], 0.0
    for number in range(BINS):
        inside = bin_of == number
        count = int(inside.sum())
        own = {"from": float(edges[number]), "to": float(edges[number + 1]), "count": count}
        if not count:
            bins.append({**own, "confidence": EMPTY_BIN, "accuracy": EMPTY_BIN})
            continue
        mean_confidence, accuracy = float(confidence[inside].mean()), float(correct[inside].mean())
        error += count * abs(accuracy - mean_confidence) / len(confidence)
        bins.append({**own, "confidence": mean_confidence, "accuracy": accuracy})
    return {"value": error if len(confidence) else NOTHING, "bins": bins}


def roc_areas(table: Floats, right: Numbers, labels: Sequence[str], items: Numbers) -> dict[str, Any] | Undefined:
    """The area under the ROC curve of each label's probability, that label against all others; `stats.roc_auc`.

    Of two labels `value` is the area of the first, which is also that of the second. Of more it is the mean over
    labels (one against the rest, macro-averaged, as in scikit-learn), for which there is no interval.
    """
    if not len(table):
        return NOTHING
    areas = {label: _area(table[:, number], right == number, items) for number, label in enumerate(labels)}
    if len(labels) == 2:
        first = areas[labels[0]]
        own = dict.fromkeys(("value", "ci95"), first) if isinstance(first, Undefined) else first
        return {**own, "labels": areas}
    return {
        "value": _macro(areas),
        "ci95": Undefined("a mean of areas of the same samples has no interval here"),
        "labels": areas,
    }


def _area(scores: Floats, positive: NDArray[np.bool_], items: Numbers) -> dict[str, Any] | Undefined:
    estimate = roc_auc(positive, scores, items)
    if estimate is None:
        return Undefined("it is the right label of all samples, or of none")
    return {"value": estimate.value, "ci95": list(estimate.ci95)}


def _macro(areas: Mapping[str, dict[str, Any] | Undefined]) -> float | Undefined:
    values = [area["value"] for area in areas.values() if not isinstance(area, Undefined)]
    if len(values) < len(areas):
        missing = next(label for label, area in areas.items() if isinstance(area, Undefined))
        return Undefined(f"the area of label {missing} is undefined")
    return float(np.mean(values))


def risk_coverage(confidence: Floats, correct: Floats, items: Numbers) -> dict[str, Any]:
    """How often answers are wrong if only the most confident ones are given.

    `aurc` is the area under the risk-coverage curve (Geifman & El-Yaniv 2017): the mean, over k from 1 to n, of the
    share of wrong answers among the k most confident. `curve` has that share at each of `COVERAGES`, with its
    interval, and the least confidence that is let through. Answers of one confidence have no order: each of them
    counts with the share of wrong ones among them.

    Args:
        confidence: n probabilities, of what was answered.
        correct: n times 1 for a right answer, 0 for a wrong one.
        items: n numbers of items.
    """
    if not len(confidence):
        return {"aurc": NOTHING, "curve": []}
    order = np.argsort(-confidence, kind="stable")
    levels, level_of = np.unique(confidence, return_inverse=True)
    wrong = np.bincount(level_of, weights=1 - correct) / np.bincount(level_of, minlength=len(levels))
    ordered = wrong[level_of][order]
    risks = np.cumsum(ordered) / np.arange(1, len(ordered) + 1)
    points = [(coverage, math.ceil(round(coverage * len(ordered), 9))) for coverage in COVERAGES]
    return {
        "aurc": float(risks.mean()),
        "curve": [
            {
                "coverage": coverage,
                "n": count,
                "risk": float(risks[count - 1]),
                "ci95": _interval(ordered[:count], items[order][:count]),
                "confidence": float(confidence[order][count - 1]),
            }
            for coverage, count in points
        ],
    }


def _interval(wrong: Floats, items: Numbers) -> list[float] | Undefined:
    estimate = mean(wrong, items)
    return list(estimate.ci95) if estimate else NOTHING
