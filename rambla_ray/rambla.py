"""RAmBLA's own numbers, under its own keys: the metrics of a classification."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sk

NULL = "null"  # RAmBLA's category for an answer that could not be read


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
    micro_of = {"recall": micro, "precision": micro, "f1": micro or math.nan}  # 2pr/(p+r) is 0/0 when both are 0
    result: dict[str, Any] = {}
    for name, values in (("recall", recall), ("precision", precision), ("f1", f1)):
        result[f"excl/{name}/per_class"] = values.tolist()
        result[f"excl/{name}/macro"] = float(values.mean()) if len(values) else math.nan
        result[f"excl/{name}/micro"] = micro_of[name]
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
