"""Metrics: RAmBLA's own numbers where it has them, textbook values where a formula has a name."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rambla_cases import recorded

from rambla_ray.schema import NULL, Outcome
from rambla_ray.scoring.cells import CELL_SCHEMA, Cell
from rambla_ray.scoring.metrics import cell_metrics, paired_metrics, variant_effects
from rambla_ray.scoring.rambla import rambla_metrics
from rambla_ray.scoring.significance import mcnemar_exact
from rambla_ray.scoring.undefined import INFINITE, NAN, Undefined, without_nan

YES_NO_NULL = ["yes", "no", NULL]
NOT_SCORED = Undefined("no sample was scored")

# Cases of the original that have no counterpart here, and why.
NOT_COVERED = {
    "exclude without confmat": "the original's own config check; here the confusion matrix is always computed",
    "no labels kwarg and null absent -> 2x2 confmat misaligned": "a bug of the original; labels are always given here",
}


def ours(case: dict[str, Any]) -> dict[str, Any] | str:
    """Our metrics for a case of the original's, under the same settings; `refused` where we raise."""
    config = case["config"]
    excluded = config.get("classes_to_exclude") or ()
    try:
        return rambla_metrics(
            case["targets"],
            case["predictions"],
            case["categories"],
            excluded=(excluded,) if isinstance(excluded, str) else tuple(excluded),
            average=config.get("average", "weighted"),
        )
    except ValueError:
        return "refused"


def comparable(value: Any) -> Any:
    """NaN as the text that JSON cases have for it, floats to twelve digits."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else float(f"{value:.12g}")
    return [comparable(inner) for inner in value] if isinstance(value, list) else value


def test_metrics_are_those_of_rambla() -> None:
    cases = recorded("metric_cases")
    covered = [case for case in cases if case["note"] not in NOT_COVERED]
    assert (len(cases), len(covered)) == (34, 32)
    different = []
    for number, case in enumerate(covered):
        got = ours(case)
        if "error" in case:
            expected: Any = {} if not case["targets"] else "refused"
            if got != expected:
                different.append((number, case["note"], got, case["error"]))
            continue
        assert isinstance(got, dict), case["note"]
        for key, value in case["output"]["results"].items():
            if key != "accuracy" and comparable(got.get(key)) != comparable(value):
                different.append((number, case["note"], key, got.get(key), value))
    assert different == []


TARGETS = ["yes", "yes", "no", "no", "yes"]
PREDICTIONS = ["yes", "no", "no", NULL, NULL]


def test_null_answers_cost_recall_and_vanish_from_the_excluding_metrics() -> None:
    got = rambla_metrics(TARGETS, PREDICTIONS, YES_NO_NULL)
    assert got["confusion_matrix"] == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert got["recall"] == pytest.approx(2 / 5)
    assert got["precision"] == pytest.approx((3 * 1 + 2 * 0.5) / 5)
    assert got["f1"] == pytest.approx((3 * 0.5 + 2 * 0.5) / 5)
    assert got["excl/recall/per_class"] == [1.0, 0.5]
    assert got["excl/precision/per_class"] == [0.5, 1.0]
    assert (got["excl/recall/macro"], got["excl/recall/micro"]) == (0.75, pytest.approx(2 / 3))
    assert got["excl/label_encoder"] == {"no": 0, "yes": 1}
    assert (got["class_counts/n_pred_null"], got["class_counts/prop_target_yes"]) == (2, 0.6)


@pytest.mark.parametrize(
    ("target", "prediction", "key", "expected"),
    [
        pytest.param("yes", "yes", "excl/recall/per_class", [1.0, 1.0], id="0/0 is 1 for recall"),
        pytest.param("yes", "yes", "excl/precision/per_class", [1.0, 1.0], id="0/0 is 1 for precision"),
        pytest.param("yes", "no", "excl/recall/per_class", [1.0, 0.0], id="a class nobody has"),
        pytest.param("yes", NULL, "excl/recall/micro", "nan", id="nothing left"),
        pytest.param("yes", "no", "excl/f1/micro", "nan", id="0/0 is undefined for f1"),
        pytest.param("yes", NULL, "recall", 0.0, id="all null"),
        pytest.param("yes", NULL, "precision", 0.0, id="0/0 is 0 with all classes"),
    ],
)
def test_zero_by_zero_is_as_in_rambla(target: str, prediction: str, key: str, expected: Any) -> None:
    assert comparable(rambla_metrics([target], [prediction], YES_NO_NULL)[key]) == expected


@pytest.mark.parametrize(
    ("targets", "predictions"),
    [(["yes"], ["maybe"]), (["maybe"], ["yes"]), (["Yes"], ["yes"]), ([""], ["yes"])],
    ids=["prediction", "target", "case", "empty"],
)
def test_a_value_outside_the_categories_is_refused(targets: list[str], predictions: list[str]) -> None:
    with pytest.raises(ValueError, match="outside the categories"):
        rambla_metrics(targets, predictions, YES_NO_NULL)


def test_nothing_has_no_metrics() -> None:
    assert rambla_metrics([], [], YES_NO_NULL) == {}


Row = dict[str, Any]


def sample(root_id: str, answer: str = "yes", target: str = "yes", outcome: str = "scored", **more: Any) -> Row:
    read = answer if outcome == "scored" else ""
    failed = outcome in ("failed", "too_long", "judge_failed")
    row = {"root_id": root_id, "target": target, "label": target, "answer": read, "rambla_answer": read}
    row |= {"outcome": outcome, "prompt_tokens": 0, "completion_tokens": 0, "row": 0}
    return {**row, "error_kind": "server" if failed else "", "scores_against": "", "target_answered": True, **more}


def cell(*rows: Row) -> Cell:
    return Cell(pa.Table.from_pylist(list(rows), schema=CELL_SCHEMA))


def no_texts(rows: object) -> list[str]:
    raise AssertionError(f"texts of {rows} were asked for")


LABELS = st.sampled_from(["yes", "no"])
SCORED = st.builds(
    lambda outcome, answer, target: sample("1", answer, target, outcome.value, prompt_tokens=3, completion_tokens=1),
    st.sampled_from(list(Outcome)),
    LABELS,
    LABELS,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(SCORED, min_size=1, max_size=20))
def test_a_cells_numbers_agree_with_each_other(samples: list[Row]) -> None:
    found = cell_metrics(cell(*samples), ["yes", "no"], no_texts)
    assert found["n"] == len(samples) == sum(found["outcomes"].values())
    assert set(found["outcomes"]) == {outcome.value for outcome in Outcome}
    assert found["coverage"] == found["outcomes"]["scored"] / len(samples)
    assert found["tokens"] == {"prompt": 3 * len(samples), "completion": len(samples)}
    worst, best = found["accuracy"]["bounds"]
    assert best - worst == pytest.approx(1 - found["coverage"])
    if found["coverage"] == 0:
        assert found["accuracy"]["value"] == found["accuracy"]["ci95"] == NOT_SCORED
    else:
        low, high = found["accuracy"]["ci95"]
        assert low - 1e-12 <= found["accuracy"]["value"] <= high + 1e-12
        assert worst - 1e-12 <= found["accuracy"]["value"] <= best + 1e-12
    counted = [one for one in samples if one["outcome"] not in ("failed", "judge_failed")]
    assert sum(map(sum, found["rambla"].get("confusion_matrix", []))) == len(counted)


def test_failures_stand_beside_the_score_and_not_in_it() -> None:
    samples = [sample("1"), sample("2", "no"), sample("3", outcome="failed"), sample("4", outcome="unparsed")]
    found = cell_metrics(cell(*samples), ["yes", "no"], no_texts)
    assert found["accuracy"]["value"] == 0.5
    assert found["accuracy"]["bounds"] == [0.25, 0.75]
    assert found["coverage"] == 0.5
    assert found["rambla"]["confusion_matrix"] == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]  # the failed one is not there
    assert found["rambla"]["class_counts/n_pred_null"] == 1


def test_accuracy_is_against_the_tasks_answer_and_rambla_against_the_label() -> None:
    one = sample("1", "unknown", "unknown", label="yes")
    found = cell_metrics(cell(one), ["yes", "no", "unknown"], no_texts)
    assert found["accuracy"]["value"] == 1.0
    assert found["rambla"]["recall"] == 0.0


def test_a_cell_of_failures_alone_has_no_metrics_of_rambla() -> None:
    failures = cell(sample("1", outcome="failed"), sample("2", outcome="judge_failed"))
    found = cell_metrics(failures, ["yes", "no"], no_texts)
    assert found["rambla"] == {}
    assert found["accuracy"] == {"value": NOT_SCORED, "ci95": NOT_SCORED, "bounds": [0.0, 1.0]}


def test_texts_are_asked_for_only_where_the_readers_differ_and_only_three() -> None:
    asked: list[int] = []

    def texts(rows: Any) -> list[str]:
        asked.extend(rows)
        return [f"text of row {row} {'long ' * 100}" for row in rows]

    rows = [sample(str(number), rambla_answer="" if number % 2 else "yes", row=10 + number) for number in range(9)]
    readers = cell_metrics(cell(*reversed(rows)), ["yes", "no"], texts)["readers"]
    assert readers["differ"] == 4
    assert asked == [11, 13, 15]
    assert readers["examples"][0] == {
        "root_id": "1",
        "text": f"text of row 11 {'long ' * 100}"[:200],
        "robust": "yes",
        "rambla": "",
    }


def test_pairs_are_items_scored_in_both() -> None:
    clean = cell(sample("1"), sample("2"), sample("3", "no"), sample("4"), sample("5", outcome="failed"), sample("6"))
    changed = cell(
        sample("6", outcome="empty"),
        sample("5"),
        sample("4", "no"),
        sample("3"),
        sample("2", "no"),
        sample("1"),
        sample("9"),
    )
    paired = paired_metrics(changed, clean)
    low, high = paired.pop("difference")["ci95"]
    assert low <= -0.25 <= high
    assert paired == {
        "n": 4,
        "right_to_wrong": 2,
        "wrong_to_right": 1,
        "consistency": 0.25,
        "mcnemar_p": 1.0,
        "mcnemar_p_holm": 1.0,
    }


def test_thirty_of_thirty_unchanged_have_an_interval() -> None:
    same = right_or_wrong([number % 3 > 0 for number in range(30)])
    assert paired_metrics(same, same)["difference"] == {
        "value": 0.0,
        "ci95": pytest.approx([-0.1135, 0.1135], abs=5e-5),  # Wilson's and Tango's upper bound of 0 of 30
    }


def test_pairs_are_judged_by_their_own_right_answers() -> None:
    paired = paired_metrics(cell(sample("1", "unknown", "unknown")), cell(sample("1", "yes", "yes")))
    assert (paired["right_to_wrong"], paired["wrong_to_right"], paired["consistency"]) == (0, 0, 0.0)


@pytest.mark.parametrize("changed", [sample("2"), sample("1", outcome="failed")], ids=["another item", "not scored"])
def test_without_a_pair_there_is_no_number(changed: Row) -> None:
    paired = paired_metrics(cell(changed), cell(sample("1")))
    assert paired["n"] == 0
    for name in ("consistency", "difference", "mcnemar_p", "mcnemar_p_holm"):
        assert paired[name] == Undefined("no item was scored in both")


def right_or_wrong(answers: list[bool]) -> Cell:
    return cell(*(sample(str(number), "yes" if right else "no") for number, right in enumerate(answers)))


def test_effects_of_variants_are_differences_from_the_first_on_the_same_items() -> None:
    clean, worse = right_or_wrong([True] * 100), right_or_wrong([number >= 20 for number in range(100)])
    effects = variant_effects({"n=0": clean, "n=10": worse})
    first, second = effects["variants"]
    assert (first["accuracy"], first["difference"]) == (1.0, Undefined("it is what the others are compared with"))
    assert (second["scored"], second["pairs"]) == (100, 100)
    assert second["difference"]["value"] == pytest.approx(-0.2)
    low, high = second["difference"]["ci95"]
    assert low < -0.2 < high < 0
    assert effects["slope"]["value"] == pytest.approx(-0.02)
    assert effects["compared_with"] == "n=0"


def test_the_slope_takes_the_variants_of_an_item_together() -> None:
    """Items that are right or wrong in all variants alike leave less doubt than items that differ by chance."""
    names = ("n=0", "n=10", "n=50")
    alike = {name: right_or_wrong([number % 2 == 0 for number in range(100)]) for name in names}
    mixed = {
        name: right_or_wrong([number * (3 + at) % 8 < 4 for number in range(100)]) for at, name in enumerate(names)
    }
    (low, high), (lower, higher) = (variant_effects(cells)["slope"]["ci95"] for cells in (alike, mixed))
    assert low == pytest.approx(-high)
    assert 0 < 2 * (high - low) < higher - lower


def test_variants_that_are_no_numbers_have_no_slope() -> None:
    same = right_or_wrong([True] * 10)
    assert "slope" not in variant_effects({"order=yes-no": same, "order=no-yes": same})


def test_variants_without_a_scored_sample_have_no_numbers() -> None:
    failed = cell(sample("1", outcome="failed"))
    effects = variant_effects({"n=0": failed, "n=1": failed})
    assert effects["slope"] == Undefined("fewer than two variants have a scored sample")
    assert [row["accuracy"] for row in effects["variants"]] == [NOT_SCORED, NOT_SCORED]


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 2**5),
        (0, 6, 2 / 2**6),
        (3, 3, 1.0),
        (10, 2, 2 * (1 + 12 + 66) / 2**12),
        (2, 10, 2 * (1 + 12 + 66) / 2**12),
    ],
)
def test_mcnemar_is_the_binomial_test_of_discordant_pairs(only_first: int, only_second: int, expected: float) -> None:
    assert mcnemar_exact(only_first, only_second) == pytest.approx(expected)


def test_what_is_no_number_becomes_null_with_its_reason_where_it_stood() -> None:
    reasons: dict[str, str] = {}
    value = {"a": math.nan, "b": {"c": [1.0, math.inf, {"d": -math.inf}], "e": Undefined("why")}, "f": "nan", "g": 2}
    cleaned = without_nan(value, "", reasons)
    assert cleaned == {"a": None, "b": {"c": [1.0, None, {"d": None}], "e": None}, "f": "nan", "g": 2}
    assert reasons == {"a": NAN, "b.c[1]": INFINITE, "b.c[2].d": INFINITE, "b.e": "why"}
    assert json.loads(json.dumps(cleaned, allow_nan=False)) == cleaned
