"""Several draws of each item: numbers equal to hand computation, properties, and draws that were not scored."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_samples import sample, spec, store, task_spec
from scipy import stats

from rambla_ray.results.samples import StoredTask
from rambla_ray.scoring.repeats import AnswerCounts, consistency, majority, pass_at, pass_hat, repeats, variance
from rambla_ray.scoring.stats import mean, no_difference
from rambla_ray.scoring.undefined import Undefined

# Answers "yes", "no", "maybe" to each item; "yes" is right.
BY_HAND = AnswerCounts(np.array([[3, 1, 0], [2, 2, 0], [0, 4, 0], [4, 0, 0]]), np.zeros(4, int))


def made(rows: list[list[int]]) -> AnswerCounts:
    return AnswerCounts(np.array(rows, np.int64).reshape(-1, 3), np.zeros(len(rows), np.int64))


def test_the_numbers_are_those_of_a_computation_by_hand() -> None:
    assert consistency(BY_HAND) == pytest.approx([3 / 6, 2 / 6, 1, 1])
    assert majority(BY_HAND) == pytest.approx([1, 1 / 2, 0, 1])
    assert pass_at(BY_HAND, 1) == pytest.approx([3 / 4, 1 / 2, 0, 1])
    assert pass_at(BY_HAND, 2) == pytest.approx([1, 5 / 6, 0, 1])
    assert pass_hat(BY_HAND, 2) == pytest.approx([3 / 6, 1 / 6, 0, 1])
    found = repeats(BY_HAND, 4)
    assert (found["majority"]["ties"], found["majority"]["items"]) == (1, 4)
    expected = mean([1, 0.5, 0, 1], range(4))
    assert expected is not None
    assert found["majority"]["ci95"] == pytest.approx(expected.ci95)
    assert list(found["pass@k"]) == list(found["pass^k"]) == ["1", "2", "3", "4"]
    assert found["pass@k"]["4"]["value"] == 0.75
    assert found["pass^k"]["4"]["value"] == 0.25


def test_variances_are_those_of_an_analysis_of_variance() -> None:
    draws = [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    within = np.mean([np.var(item, ddof=1) for item in draws])
    of_items = 4 * np.var([np.mean(item) for item in draws], ddof=1)
    assert of_items / within == pytest.approx(stats.f_oneway(*draws).statistic)
    between = (of_items - within) / 4
    found: Any = variance(BY_HAND)
    assert found["within"] == pytest.approx(within)
    assert found["between"] == pytest.approx(between)
    assert found["icc"] == pytest.approx(between / (between + within))


def test_items_with_unlike_numbers_of_draws_have_the_unbalanced_estimator() -> None:
    draws = [[1, 0, 1], [0, 0], [1]]
    flat = list(itertools.chain.from_iterable(draws))
    within = sum(sum((x - np.mean(item)) ** 2 for x in item) for item in draws) / (6 - 3)
    of_items = sum(len(item) * (np.mean(item) - np.mean(flat)) ** 2 for item in draws) / (3 - 1)
    found: Any = variance(made([[2, 1, 0], [0, 2, 0], [1, 0, 0]]))
    assert found["within"] == pytest.approx(within)
    assert found["between"] == pytest.approx((of_items - within) / ((6 - (9 + 4 + 1) / 6) / 2))


@pytest.mark.parametrize(("epochs", "ks"), [(3, [1, 2, 3]), (16, [*range(1, 17)]), (20, [1, 2, 4, 8, 16, 20])])
def test_of_many_draws_there_are_powers_of_two_and_all_of_them(epochs: int, ks: list[int]) -> None:
    assert list(map(int, repeats(made([[epochs, 0, 0]]), epochs)["pass@k"])) == ks


ITEMS = st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=1, max_size=6)


@given(ITEMS, st.integers(1, 12))
def test_pass_at_k_and_pass_hat_k_are_the_exact_shares_of_subsets(rows: list[list[int]], k: int) -> None:
    draws = made(rows)
    for (right, *wrong), any_right, all_right in zip(rows, pass_at(draws, k), pass_hat(draws, k), strict=True):
        n = right + sum(wrong)
        if n < k:
            assert math.isnan(any_right)
            assert math.isnan(all_right)
            continue
        whole = math.comb(n, k)
        assert any_right == pytest.approx(float(1 - Fraction(math.comb(n - right, k), whole)))
        assert all_right == pytest.approx(float(Fraction(math.comb(right, k), whole)))


@given(ITEMS)
def test_more_draws_make_any_right_likelier_and_all_right_rarer(rows: list[list[int]]) -> None:
    draws = made([row for row in rows if sum(row) >= 5])
    any_right, all_right = ([of(draws, k) for k in range(1, 6)] for of in (pass_at, pass_hat))
    assert np.diff(any_right, axis=0).min(initial=0) >= -1e-12
    assert np.diff(all_right, axis=0).max(initial=0) <= 1e-12
    assert np.allclose(any_right[0], all_right[0])
    shares = np.concatenate([consistency(draws), majority(draws)])
    assert ((shares >= 0) & (shares <= 1)).all()


def test_a_thousand_draws_are_no_overflow() -> None:
    found = repeats(made([[500, 500, 0], [1000, 0, 0]]), 1000)
    assert found["pass@k"]["512"]["value"] == pytest.approx(1)
    assert found["pass^k"]["1000"]["value"] == pytest.approx(0.5)


def test_numbers_that_do_not_exist_say_why() -> None:
    nothing = repeats(made([]), 2)
    assert all(isinstance(nothing[name]["value"], Undefined) for name in ("consistency", "majority"))
    assert isinstance(nothing["variance"], Undefined)
    alike: Any = variance(made([[2, 0, 0], [2, 0, 0]]))
    assert (alike["within"], alike["between"]) == (0, 0)
    assert isinstance(alike["icc"], Undefined)


def test_a_run_has_them_and_leaves_out_what_was_not_scored(tmp_path: Path) -> None:
    drawn = {"a": "yes yes no", "b": "no failed no", "c": "yes failed failed"}
    samples = [
        sample(item, "" if word == "failed" else word, outcome="failed" if word == "failed" else "scored", epoch=epoch)
        for item, words in drawn.items()
        for epoch, word in enumerate(words.split())
    ]
    how = spec({"t": {**task_spec({"": 9}), "epochs": 3}})
    directory = store(tmp_path, how, samples)
    (cell,) = directory.write_metrics()["cells"]
    assert (cell["n"], cell["outcomes"]["scored"], cell["rambla"]["class_counts/n_target_yes"]) == (9, 6, 3)
    assert cell["accuracy"]["value"] == 3 / 6
    found = cell["repeats"]
    assert found["epochs"] == 3
    assert (found["consistency"]["value"], found["consistency"]["items"]) == (pytest.approx((1 / 3 + 1) / 2), 2)
    assert (found["majority"]["value"], found["majority"]["items"]) == (pytest.approx(2 / 3), 3)
    assert [found["pass@k"][k]["items"] for k in "123"] == [3, 2, 1]
    directory.read_metrics()
    stored = StoredTask(directory.samples, "m", "t").read(["sample_id", "epoch"])
    assert stored is not None
    assert dict(zip(*stored.to_pydict().values(), strict=True))["m/t/-/a#3"] == 2


def test_a_run_without_epochs_has_none_of_them(tmp_path: Path) -> None:
    (cell,) = store(tmp_path, spec({"t": task_spec({"": 1})}), [sample("a")]).score()["cells"]
    assert "repeats" not in cell


@pytest.mark.parametrize("changes", [(True, False), (True, True)])
def test_draws_are_paired_by_their_epoch_and_items_are_the_clusters(
    tmp_path: Path, changes: tuple[bool, bool]
) -> None:
    """The first model is right in epoch 0 alone; of the other, each epoch is as it is there, or the opposite."""
    how = spec({"t": {**task_spec({"": 8}), "epochs": 2}}, ("m", "other"))
    for model in ("m", "other"):
        right = [(epoch == 0) != (model == "other" and changes[epoch]) for epoch in range(2)]
        samples = [
            sample(str(item), "yes" if right[epoch] else "no", model=model, epoch=epoch)
            for epoch in (1, 0)
            for item in range(4)
        ]
        directory = store(tmp_path, how, samples, model=model)
    cell, _ = directory.score()["comparisons"]
    assert cell["n"] == 8
    assert (cell["a_only"], cell["b_only"]) == (4, 4 * changes[1])
    assert cell["a_items"] == list("0123")
    assert cell["difference"]["value"] == (0 if changes[1] else 0.5)
    differences = [-1.0 if item < 4 else float(changes[1]) for item in range(8)]
    assert cell["mcnemar_p"] == no_difference(differences, [item % 4 for item in range(8)]).p > 2**-7


def test_a_task_is_paired_with_the_draws_that_the_other_has(tmp_path: Path) -> None:
    tasks = {"t": {**task_spec({"": 8}, "clean"), "epochs": 2}, "clean": task_spec({"": 4})}
    samples = [sample(str(item), task="clean") for item in range(4)]
    samples += [sample(str(item), "no" if epoch else "yes", epoch=epoch) for epoch in (1, 0) for item in range(4)]
    cells = store(tmp_path, spec(tasks), samples).score()["cells"]
    (paired,) = [cell["paired"] for cell in cells if cell["task"] == "t"]
    assert (paired["n"], paired["right_to_wrong"], paired["consistency"]) == (4, 0, 1.0)
