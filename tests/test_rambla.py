"""RAmBLA's remaining numbers: the original's own where it recorded them, and small ones checked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rambla_cases import recorded

from rambla_ray.scoring.rambla import continuous_metrics, fewshot_bias, quality, relative_change, scale

NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
CLASSES = ("no", "null", "yes")

# The original's encoder needs the network, so the counts it found stand here: a mean, a median and a deviation
# determine them but for their order. What is compared is the arithmetic.
TOKEN_COUNTS = ([10], [2, 2, 2, 2], [1, 2, 3, 4], [1, 1, 2])


def decoded(value: Any) -> Any:
    """A JSON case with its words for NaN and infinity turned into numbers."""
    if isinstance(value, str):
        return NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: decoded(inner) for key, inner in value.items()}
    return [decoded(inner) for inner in value] if isinstance(value, list) else value


def same(first: Any, second: Any) -> bool:
    """Whether two nested values are equal, floats to twelve digits, NaN being equal to NaN."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, float) or isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-12) or (math.isnan(first) and math.isnan(second))
    return bool(first == second)


def rambla_cases(name: str) -> list[dict[str, Any]]:
    cases = decoded(recorded(f"{name}_cases"))
    assert isinstance(cases, list)
    return cases


def rows(matrix: list[list[int]]) -> tuple[list[str], list[str]]:
    """Targets and predictions that have this confusion matrix over CLASSES."""
    pairs = [
        (target, prediction)
        for target, counts in zip(CLASSES, matrix, strict=True)
        for prediction, count in zip(CLASSES, counts, strict=True)
        for _ in range(count)
    ]
    return [target for target, _ in pairs], [prediction for _, prediction in pairs]


# --- few-shot bias ---------------------------------------------------------------------------------------------------


def test_fewshot_bias_is_that_of_rambla() -> None:
    cases = rambla_cases("fewshot_bias")
    assert len(cases) == 6
    for case in cases:
        assert same(fewshot_bias(*rows(case["confusion_matrix_no_null_yes"]), ["yes", "no"]), case["bias"])


@pytest.mark.parametrize(
    ("matrix", "yes", "no"),
    [
        ([[3, 1, 2], [0, 0, 0], [1, 2, 5]], 7 / 11, 4 / 11),
        ([[2, 1, 3], [1, 1, 1], [4, 0, 2]], 5 / 11, 6 / 11),  # a null target counts nowhere
        ([[5, 0, 0], [0, 0, 0], [5, 0, 0]], 0.0, 1.0),
        ([[0, 3, 0], [0, 0, 0], [0, 3, 0]], math.nan, math.nan),
    ],
)
def test_fewshot_bias(matrix: list[list[int]], yes: float, no: float) -> None:
    expected = {"bias_for_yes": yes, "bias_for_no": no}
    assert same(fewshot_bias(*rows(matrix), ["yes", "no"]), expected)
    assert same(fewshot_bias(*rows(matrix), ["yes", "no", "null"]), expected)


def test_fewshot_bias_refuses_what_is_no_category() -> None:
    with pytest.raises(ValueError, match="outside the categories: maybe"):
        fewshot_bias(["yes"], ["maybe"], ["yes", "no"])


# --- relative change -------------------------------------------------------------------------------------------------


def test_relative_change_is_that_of_rambla() -> None:
    cases = rambla_cases("relative_change")
    assert len(cases) == 9
    for case in cases:
        if case["out"] == {"raises": "TypeError"}:
            with pytest.raises(TypeError):
                relative_change(case["in"])
        else:
            assert same(relative_change(case["in"]), case["out"])


@pytest.mark.parametrize(
    ("series", "changes"),
    [
        ([2, 1, 3], [-0.5, 0.5]),
        ([0, 1, -1, 0], [math.inf, -math.inf, math.nan]),
        ([5], []),
        ([], []),
        ([np.float64(4), np.int64(5)], [0.25]),
    ],
)
def test_relative_change(series: list[Any], changes: list[float]) -> None:
    assert same(relative_change({"a": series}), {"a": changes})


@pytest.mark.parametrize("series", [["x", 1], [[1, 2], [3, 4]], [{"no": 0}, {"no": 0}], [None, 0.5]])
def test_series_that_are_not_numbers_have_no_relative_change(series: list[Any]) -> None:
    assert relative_change({"a": series, "b": [1, 2]}) == {"b": [1.0]}


# --- response quality ------------------------------------------------------------------------------------------------


def test_quality_is_that_of_rambla() -> None:
    cases = rambla_cases("quality")
    for case, counts in zip(cases, TOKEN_COUNTS, strict=True):
        assert len(case["texts"]) == len(counts)
        assert same({"r": quality(counts)}, case["out"])


@pytest.mark.parametrize(
    ("counts", "mean", "median", "std"),
    [
        ([10], 10.0, 10.0, 0.0),
        ([1, 2, 3, 4], 2.5, 2.5, math.sqrt(1.25)),
        ([1, 1, 2], 4 / 3, 1.0, math.sqrt(2) / 3),
        ([], math.nan, math.nan, math.nan),
    ],
)
def test_quality(counts: list[int], mean: float, median: float, std: float) -> None:
    assert same(quality(counts), {"mean": mean, "median": median, "std": std})


# --- scaling ---------------------------------------------------------------------------------------------------------


def test_scaling_is_that_of_rambla() -> None:
    cases = rambla_cases("scaling")
    assert len(cases) == 5
    for case in cases:
        assert same(scale(case["in"], case["min"], case["max"]), case["out"])


@pytest.mark.parametrize(
    ("values", "low", "high", "scaled"),
    [
        ([1.0, 3.0, 5.0], 0, 1, [0.0, 0.5, 1.0]),
        (["0", "1", "1"], 0, 1, [0.0, 1.0, 1.0]),
        ([2, 4], -1, 1, [-1.0, 1.0]),
        ([3, 3], 0, 1, [math.nan, math.nan]),
    ],
)
def test_scale(values: list[Any], low: float, high: float, scaled: list[float]) -> None:
    assert same(scale(values, low, high), scaled)


@pytest.mark.parametrize("values", [[], ["one"]])
def test_scale_refuses_what_is_no_number(values: list[str]) -> None:
    with pytest.raises(ValueError, match=r"one|zero-size"):
        scale(values, 0, 1)


# --- continuous predictions ------------------------------------------------------------------------------------------


def test_continuous_metrics_are_those_of_rambla() -> None:
    cases = rambla_cases("continuous")
    compared = 0
    for case in cases:
        for name, expected in case["out"].items():
            if expected == {"raises": "ValueError"}:
                with pytest.raises(ValueError, match=r"no metric|two classes"):
                    continuous_metrics(case["predictions"], case["targets"], [name])
            else:
                assert same(continuous_metrics(case["predictions"], case["targets"], [name]), expected), name
            compared += 1
    assert (len(cases), compared) == (1, 14)


def test_errors_of_continuous_predictions() -> None:
    assert continuous_metrics([1.0, 2.0, 4.0], [1.0, 3.0, 2.0]) == {
        "mse": pytest.approx(5 / 3),
        "mae": pytest.approx(1.0),
        "r_squared": -1.5,
    }


def test_errors_see_32_bits_and_tests_see_64() -> None:
    beyond_float32 = 1 + 1e-9
    found = continuous_metrics([beyond_float32, 1, 0], [1, 1, 0], ["mse", "r_squared", "stats_pearsonr"])
    assert (found["mse"], found["r_squared"]) == (0.0, 1.0)
    assert found["stats_pearsonr_statistic"] == pytest.approx(1)


def test_tests_of_scipy_take_predictions_first() -> None:
    found = continuous_metrics([1, 2, 3, 4], [10, 30, 20, 40], ["stats_spearmanr", "stats_mannwhitneyu"])
    assert found["stats_spearmanr_statistic"] == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert found["stats_mannwhitneyu_statistic"] == 0  # no prediction is above a target
    assert found.keys() == {
        f"stats_{test}_{part}" for test in ("spearmanr", "mannwhitneyu") for part in ("statistic", "pvalue")
    }


def test_roc_truncates_targets_and_reverse_exchanges_the_roles() -> None:
    predictions, targets = [0.1, 0.4, 0.35, 1.8], [0.0, 0.99, 1.0, 1.2]  # classes 0 0 1 1
    names = ["sklearn_roc_auc_score", "sklearn_reverse_roc_auc_score", "sklearn_roc_curve"]
    found = continuous_metrics(predictions, targets, names)
    assert found["roc_auc_score"] == 0.75
    assert found["reverse_roc_auc_score"] == 1.0  # classes 0 0 0 1, and 1.2 is the largest target
    assert found["roc_curve"] == {
        "fpr": [0.0, 0.0, 0.5, 0.5, 1.0],
        "tpr": [0.0, 0.5, 0.5, 1.0, 1.0],
        "thresholds": [math.inf, 1.8, 0.4, 0.35, 0.1],
    }


@pytest.mark.parametrize(
    ("predictions", "targets", "names", "message"),
    [
        ([0.5], [1.0], ["foo"], "no metric 'foo'; there are mse, mae"),
        ([0.5], [1.0], ["stats_norm"], "no metric 'stats_norm'"),
        ([0.5, 0.6], [1.0, 1.9], ["sklearn_roc_curve"], "two classes; every target is of class 1"),
        ([], [], ["mse"], "0 predictions for 0 targets"),
        ([0.5], [1.0, 2.0], ["mse"], "1 predictions for 2 targets"),
    ],
)
def test_refusals(predictions: list[float], targets: list[float], names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        continuous_metrics(predictions, targets, names)


@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.floats(-100, 100, width=32)), min_size=1))
@settings(deadline=None)
def test_squared_error_is_no_less_than_the_square_of_the_absolute(pairs: list[tuple[float, float]]) -> None:
    predictions, targets = map(list, zip(*pairs, strict=True))
    found = continuous_metrics(predictions, targets, ["mse", "mae"])
    assert found["mse"] >= found["mae"] ** 2 * (1 - 1e-9)
    exchanged = continuous_metrics(targets, predictions, ["mse", "mae"])
    assert found == exchanged
