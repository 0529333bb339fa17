"""Calibration: against scikit-learn, and against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from rambla_ray.scoring.calibration import BINS, by_label, calibration
from rambla_ray.scoring.likelihoods import probabilities
from rambla_ray.scoring.undefined import Undefined

YES_NO, THREE = ("yes", "no"), ("yes", "no", "maybe")


def drawn(labels: Sequence[str], count: int) -> tuple[Any, Any]:
    """Probabilities of the labels, and which is right: the likelier ones more often."""
    draws = np.random.default_rng(7)
    table = draws.dirichlet(np.ones(len(labels)), count)
    return table, np.array([draws.choice(len(labels), p=row) for row in table])


def numbers(table: Any, right: Any, labels: Sequence[str] = YES_NO, answered: Any = None) -> dict[str, Any]:
    table, right = np.asarray(table, dtype=np.float64).reshape(-1, len(labels)), np.asarray(right, dtype=int)
    chosen = table.argmax(axis=1) if answered is None else np.asarray(answered)
    return calibration(table, chosen, right, labels, np.arange(len(table)))


@pytest.mark.parametrize("labels", [YES_NO, THREE])
def test_brier_score_and_areas_are_those_of_scikit_learn(labels: Sequence[str]) -> None:
    table, right = drawn(labels, 200)
    found = numbers(table, right, labels)
    theirs = brier_score_loss(right, table, labels=range(len(labels)), scale_by_half=False)
    assert found["brier"]["value"] == pytest.approx(theirs)
    for number, label in enumerate(labels):
        area = roc_auc_score(right == number, table[:, number])
        assert found["auroc"]["labels"][label]["value"] == pytest.approx(area)
        low, high = found["auroc"]["labels"][label]["ci95"]
        assert low < area < high
    if labels == THREE:
        assert found["auroc"]["value"] == pytest.approx(roc_auc_score(right, table, multi_class="ovr"))
        assert isinstance(found["auroc"]["ci95"], Undefined)
    else:
        assert found["auroc"]["value"] == pytest.approx(roc_auc_score(right == 0, table[:, 0]))


def test_calibration_error_by_hand() -> None:
    found = numbers([[0.95, 0.05], [0.91, 0.09], [0.6, 0.4], [0.3, 0.7]], [0, 1, 0, 1])["ece"]
    by_upper_end = {round(one["to"], 1): one for one in found["bins"]}
    assert [(one["from"], one["to"]) for one in found["bins"]] == [(n / 10, (n + 1) / 10) for n in range(BINS)]
    assert [one["count"] for one in found["bins"]] == [0, 0, 0, 0, 0, 1, 1, 0, 0, 2]
    assert by_upper_end[1.0] == {
        "from": 0.9,
        "to": 1.0,
        "count": 2,
        "confidence": pytest.approx(0.93),
        "accuracy": 0.5,
    }
    assert by_upper_end[0.6]["confidence"] == 0.6  # A bin has its upper end.
    assert isinstance(by_upper_end[0.1]["confidence"], Undefined)
    assert found["value"] == pytest.approx((1 * 0.4 + 1 * 0.3 + 2 * 0.43) / 4)


def test_risk_by_coverage_by_hand() -> None:
    table = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]
    found = numbers(table, [0, 1, 0, 1])["risk_coverage"]
    assert found["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    curve = {point["coverage"]: point for point in found["curve"]}
    assert list(curve) == [n / 10 for n in range(1, 11)]
    assert [point["n"] for point in curve.values()] == [1, 1, 2, 2, 2, 3, 3, 4, 4, 4]
    assert (curve[0.5]["risk"], curve[0.5]["confidence"]) == (0.5, 0.8)
    assert curve[1.0]["risk"] == 0.5
    assert curve[1.0]["ci95"][0] < 0.5 < curve[1.0]["ci95"][1]


def test_answers_of_one_confidence_have_no_order() -> None:
    table, right = [[0.9, 0.1], [0.6, 0.4], [0.6, 0.4]], [0, 1, 0]
    found = numbers(table, right)["risk_coverage"]
    assert found == numbers(table, [0, 0, 1])["risk_coverage"]
    assert found["aurc"] == pytest.approx((0 + 0.5 / 2 + 1 / 3) / 3)


def test_confidence_is_that_of_the_label_that_was_answered() -> None:
    found = numbers([[0.4, 0.6]], [0], answered=[0])
    assert found["risk_coverage"]["curve"][0] == {
        "coverage": 0.1,
        "n": 1,
        "risk": 0.0,
        "ci95": [0.0, pytest.approx(0.793, abs=0.001)],
        "confidence": 0.4,
    }


def test_probabilities_of_choices_for_one_label_add_up() -> None:
    choices = np.array([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    table = by_label(choices, ["1", "0", "1"], ["1", "0"])
    assert table == pytest.approx(np.array([[0.8, 0.2], [0.9, 0.1]]))


def test_without_a_sample_each_number_has_its_reason() -> None:
    found = numbers([], [])
    assert found["n"] == 0
    assert found["risk_coverage"]["curve"] == []
    for undefined in (found["brier"], found["ece"]["value"], found["auroc"], found["risk_coverage"]["aurc"]):
        assert undefined == Undefined("no sample with likelihoods was scored")


def test_with_one_right_label_alone_there_is_no_area() -> None:
    found = numbers([[0.9, 0.1], [0.4, 0.6]], [0, 0])
    reason = Undefined("it is the right label of all samples, or of none")
    assert found["auroc"] == {"value": reason, "ci95": reason, "labels": {"yes": reason, "no": reason}}
    three = numbers([[0.9, 0.1, 0], [0.4, 0.6, 0]], [0, 1], THREE)
    assert three["auroc"]["value"] == Undefined("the area of label maybe is undefined")


@given(st.lists(st.floats(-1e6, 0), min_size=2, max_size=9))
def test_probabilities_add_up_to_one_and_keep_the_order(logprobs: list[float]) -> None:
    found = probabilities(logprobs)
    assert math.fsum(found) == pytest.approx(1)
    assert found[logprobs.index(max(logprobs))] == max(found)


def test_probabilities_by_hand() -> None:
    assert probabilities([math.log(0.02), math.log(0.06)]) == pytest.approx((0.25, 0.75))
    assert probabilities([]) == ()
