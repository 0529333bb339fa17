"""RAmBLA's own numbers, under its own keys and computed as it does: classification, bias, change, lengths, scores.

Where the original gives NaN or infinity, so do these. The source is the original's code (GSK 2024, arXiv 2403.14578).
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn import metrics as sk

from rambla_ray.schema import NULL

Column = NDArray[np.float64]
Metric = Callable[[Column, Column], dict[str, Any]]


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
        f1 = 2 * precision * recall / (precision + recall)  # Unlike for the other two, 0/0 stays NaN.
    micro = float(hits.sum() / total) if total else math.nan
    # When precision and recall are 0, f1 is 2pr / (p + r) = 0/0.
    micro_by_name = {"recall": micro, "precision": micro, "f1": micro or math.nan}
    result: dict[str, Any] = {}
    for name, values in (("recall", recall), ("precision", precision), ("f1", f1)):
        result[f"excl/{name}/per_class"] = values.tolist()
        result[f"excl/{name}/macro"] = float(values.mean()) if len(values) else math.nan
        result[f"excl/{name}/micro"] = micro_by_name[name]
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


def fewshot_bias(targets: Sequence[str], predictions: Sequence[str], categories: Sequence[str]) -> dict[str, float]:
    """The share of each category among the answers that could be read, as `bias_for_<category>`; they sum to 1.

    Rows whose target or prediction is null count nowhere; when no row is left, every share is NaN.

    Args:
        targets: n right answers, of `categories` or null.
        predictions: n answers, of `categories` or null.
        categories: the possible answers; null may be among them, and has no share.

    Raises:
        ValueError: a value outside `categories` and null.
    """
    strange = sorted({*targets, *predictions} - {*categories, NULL})
    if strange:
        raise ValueError(f"values outside the categories: {', '.join(strange)}")
    answers = Counter(
        prediction for target, prediction in zip(targets, predictions, strict=True) if NULL not in (target, prediction)
    )
    total = answers.total()
    return {f"bias_for_{name}": answers[name] / total if total else math.nan for name in categories if name != NULL}


def relative_change(series: Mapping[str, Sequence[Any]]) -> dict[str, list[float]]:
    """(v[1:] - v[0]) / v[0] of each numeric series; a series with anything but numbers in it is left out.

    A base of 0 gives an infinity, or NaN for 0/0.

    Raises:
        TypeError: a series of truth values, which have no difference.
    """
    changes = {}
    for name, values in series.items():
        if not all(isinstance(value, Real) for value in values):
            continue
        if values and all(isinstance(value, bool) for value in values):
            raise TypeError(f"{name}: truth values have no relative change")
        column = np.array(values, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            changes[name] = ((column[1:] - column[:1]) / column[:1]).tolist()
    return changes


def quality(token_counts: Sequence[int]) -> dict[str, float]:
    """Mean, median and population standard deviation of response lengths in tokens; all NaN without a response."""
    if not len(token_counts):
        return dict.fromkeys(("mean", "median", "std"), math.nan)
    return {
        "mean": float(np.mean(token_counts)),
        "median": float(np.median(token_counts)),
        "std": float(np.std(token_counts)),
    }


def scale(values: Sequence[Any], low: float, high: float) -> list[float]:
    """`values`, numbers or their text, mapped linearly so that they span low to high; all NaN when all are equal.

    Raises:
        ValueError: no values, or a text that is no number.
    """
    column = np.array([float(value) for value in values])
    with np.errstate(invalid="ignore"):
        scaled: list[float] = ((column - column.min()) / np.ptp(column) * (high - low) + low).tolist()
    return scaled


def continuous_metrics(
    predictions: Sequence[float], targets: Sequence[float], names: Sequence[str] = ("mse", "mae", "r_squared")
) -> dict[str, Any]:
    """Metrics of numeric predictions, under RAmBLA's keys.

    Args:
        predictions: n numbers.
        targets: n numbers.
        names: which metrics, of
            mse, mae: mean squared and absolute error;
            r_squared: 1 - SSR / SST, to three decimals, as Hugging Face evaluate has it;
            stats_pearsonr, stats_spearmanr, stats_pointbiserialr, stats_mannwhitneyu, stats_kendalltau: scipy's
            test of (predictions, targets), as `<name>_statistic` and `<name>_pvalue`, NaN where undefined;
            sklearn_roc_auc_score, sklearn_roc_curve: with int(target) as the class (0.99 is class 0), without
            their prefix; sklearn_reverse_roc_auc_score, sklearn_reverse_roc_curve: the two roles exchanged.

    The first three see their input as 32-bit floats, because evaluate stores it so.

    Raises:
        ValueError: an unknown name, no rows, columns of different length, or a ROC with one class only.
    """
    unknown = [name for name in names if name not in _METRICS]
    if unknown:
        raise ValueError(f"no metric '{unknown[0]}'; there are {', '.join(_METRICS)}")
    if not len(predictions) or len(predictions) != len(targets):
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets")
    result: dict[str, Any] = {}
    for name in names:
        result |= _METRICS[name](np.asarray(predictions, np.float64), np.asarray(targets, np.float64))
    return result


def _single_precision(values: ArrayLike) -> Column:
    return np.asarray(values, dtype=np.float32).astype(np.float64)


def _mse(predictions: Column, targets: Column) -> dict[str, Any]:
    return {"mse": float(sk.mean_squared_error(_single_precision(targets), _single_precision(predictions)))}


def _mae(predictions: Column, targets: Column) -> dict[str, Any]:
    return {"mae": float(sk.mean_absolute_error(_single_precision(targets), _single_precision(predictions)))}


def _r_squared(predictions: Column, targets: Column) -> dict[str, Any]:
    predicted, right = _single_precision(predictions), _single_precision(targets)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = 1 - np.sum((predicted - right) ** 2) / np.sum((right - right.mean()) ** 2)
    return {"r_squared": float(np.round(value, 3))}


def _scipy(name: str) -> Metric:
    def metric(predictions: Column, targets: Column) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns that constant input has no correlation; NaN says so already.
            outcome = getattr(stats, name)(predictions, targets)
        return {
            f"stats_{name}_statistic": float(outcome.statistic),
            f"stats_{name}_pvalue": float(outcome.pvalue),
        }

    return metric


def _roc_auc_score(predictions: Column, targets: Column) -> dict[str, Any]:
    return {"roc_auc_score": float(sk.roc_auc_score(_classes(targets), predictions))}


def _classes(values: Column) -> list[int]:
    classes = [int(value) for value in values]
    if len(set(classes)) < 2:
        raise ValueError(f"a ROC needs two classes; every target is of class {classes[0]}")
    return classes


# What follows is RAmBLA's, too, but no run of this package computes it: it is for whoever compares with the original,
# and its tests hold it to the original's outputs.


def _roc_curve(predictions: Column, targets: Column) -> dict[str, Any]:
    curve = sk.roc_curve(_classes(targets), predictions)
    return {"roc_curve": {name: side.tolist() for name, side in zip(("fpr", "tpr", "thresholds"), curve, strict=True)}}


def _reverse(metric: Metric) -> Metric:
    def reversed_metric(predictions: Column, targets: Column) -> dict[str, Any]:
        return {f"reverse_{name}": value for name, value in metric(targets, predictions).items()}

    return reversed_metric


_METRICS: Mapping[str, Metric] = {
    "mse": _mse,
    "mae": _mae,
    "r_squared": _r_squared,
    **{
        f"stats_{name}": _scipy(name)
        for name in ("pearsonr", "spearmanr", "pointbiserialr", "mannwhitneyu", "kendalltau")
    },
    "sklearn_roc_auc_score": _roc_auc_score,
    "sklearn_roc_curve": _roc_curve,
    "sklearn_reverse_roc_auc_score": _reverse(_roc_auc_score),
    "sklearn_reverse_roc_curve": _reverse(_roc_curve),
}
