"""Metrics: from the samples of a cell to its numbers. Pure; nothing here knows where samples come from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import metrics as sk

from rambla_ray.schema import Outcome
from rambla_ray.stats import mcnemar_exact, wilson

NULL = "null"  # RAmBLA's category for an answer that could not be read

# Outcomes in which the model had its say, or had none because of its own limits: RAmBLA counts these as null.
NULL_IN_RAMBLA = frozenset({Outcome.UNPARSED, Outcome.EMPTY, Outcome.TRUNCATED, Outcome.REFUSED, Outcome.TOO_LONG})


@dataclass(frozen=True, slots=True)
class Scored:
    """One sample as the metrics see it. `label` is the dataset's own; `target` the right answer in this task."""

    root_id: str
    target: str
    label: str
    answer: str
    rambla_answer: str
    outcome: Outcome
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def correct(self) -> bool:
        """Whether it was scored, and right."""
        return self.outcome == Outcome.SCORED and self.answer == self.target


def cell_metrics(samples: Sequence[Scored], choices: Sequence[str]) -> dict[str, Any]:
    """The numbers of one cell, without `paired`.

    `accuracy` is over scored samples; `coverage` says how many those are; `bounds` what the accuracy would be if
    everything not scored were wrong, or right.
    """
    n = len(samples)
    outcomes = Counter(sample.outcome for sample in samples)
    scored = outcomes[Outcome.SCORED]
    right = sum(sample.correct for sample in samples)
    asked_in_rambla = [s for s in samples if s.outcome == Outcome.SCORED or s.outcome in NULL_IN_RAMBLA]
    return {
        "n": n,
        "outcomes": {outcome.value: outcomes[outcome] for outcome in Outcome},
        "coverage": scored / n,
        "accuracy": {
            "value": right / scored if scored else None,
            "ci95": list(wilson(right, scored)) if scored else None,
            "bounds": [right / n, (right + n - scored) / n],
        },
        "rambla": rambla_metrics(
            [sample.label for sample in asked_in_rambla],
            [sample.rambla_answer or NULL for sample in asked_in_rambla],
            [*choices, NULL],
        ),
        "tokens": {
            "prompt": sum(sample.prompt_tokens for sample in samples),
            "completion": sum(sample.completion_tokens for sample in samples),
        },
    }


def paired_metrics(samples: Sequence[Scored], clean: Sequence[Scored]) -> dict[str, Any]:
    """How answers to the same items differ from those of the task they are paired with.

    Only items scored in both count. `mcnemar_p` is the exact two-sided p of McNemar's test on right and wrong.
    """
    by_root = {sample.root_id: sample for sample in clean if sample.outcome == Outcome.SCORED}
    pairs = [
        (by_root[sample.root_id], sample)
        for sample in samples
        if sample.outcome == Outcome.SCORED and sample.root_id in by_root
    ]
    to_wrong = sum(before.correct and not after.correct for before, after in pairs)
    to_right = sum(after.correct and not before.correct for before, after in pairs)
    return {
        "n": len(pairs),
        "right_to_wrong": to_wrong,
        "wrong_to_right": to_right,
        "consistency": (sum(before.answer == after.answer for before, after in pairs) / len(pairs) if pairs else None),
        "mcnemar_p": mcnemar_exact(to_wrong, to_right) if pairs else None,
    }


def rambla_metrics(
    targets: Sequence[str],
    predictions: Sequence[str],
    categories: Sequence[str],
    *,
    excluded: Sequence[str] = (NULL,),
    average: str = "weighted",
) -> dict[str, Any]:
    """RAmBLA's metrics of a classification, under its own keys.

    Classes are numbered alphabetically; the confusion matrix has targets as rows and predictions as columns. The
    `excl/` metrics leave out the rows and columns of `excluded`, with 0/0 taken as 1 for precision and recall, and as
    undefined (NaN) for f1, as in the original. Empty input gives an empty dict.

    Raises:
        ValueError: a value outside `categories`.
    """
    if not targets:
        return {}
    classes = sorted(categories)
    strange = sorted({*targets, *predictions} - set(classes))
    if strange:
        raise ValueError(f"values outside the categories: {', '.join(strange)}")
    matrix = sk.confusion_matrix(targets, predictions, labels=classes)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        targets, predictions, average=average, zero_division=0.0
    )
    return {
        "confusion_matrix": matrix.tolist(),
        "recall": float(recall),
        "f1": float(f1),
        "precision": float(precision),
        **_excluding(matrix, classes, excluded),
        **_class_counts(matrix, classes),
    }


def _excluding(matrix: np.ndarray, classes: Sequence[str], excluded: Sequence[str]) -> dict[str, Any]:
    kept = [index for index, name in enumerate(classes) if name not in excluded]
    inner = matrix[np.ix_(kept, kept)].astype(float)
    hits, total = np.diag(inner), inner.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(inner.sum(axis=1) > 0, hits / inner.sum(axis=1), 1.0)
        precision = np.where(inner.sum(axis=0) > 0, hits / inner.sum(axis=0), 1.0)
        f1 = 2 * precision * recall / (precision + recall)  # 0/0 is NaN here, unlike above
    micro = float(hits.sum() / total) if total else math.nan
    result: dict[str, Any] = {}
    for name, values in (("recall", recall), ("precision", precision), ("f1", f1)):
        result[f"excl/{name}/per_class"] = values.tolist()
        result[f"excl/{name}/macro"] = float(values.mean()) if len(values) else math.nan
        result[f"excl/{name}/micro"] = micro
    result["excl/label_encoder"] = {classes[index]: place for place, index in enumerate(kept)}
    return result


def _class_counts(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    total = int(matrix.sum())
    result: dict[str, Any] = {}
    for index, name in enumerate(classes):
        for side, count in (("pred", int(matrix[:, index].sum())), ("target", int(matrix[index].sum()))):
            result[f"class_counts/n_{side}_{name}"] = count
            result[f"class_counts/prop_{side}_{name}"] = count / total
    return result


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
