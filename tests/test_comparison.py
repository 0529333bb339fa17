"""Models against each other: the numbers are those of counting pairs one by one, and of published formulas."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_samples import sample, spec, task_spec
from scipy import stats as scipy_stats

from rambla_ray.results import verdicts
from rambla_ray.results.directory import RunDirectory, to_json
from rambla_ray.schema import Sample, to_table
from rambla_ray.scoring.comparison import pairs_of
from rambla_ray.scoring.significance import detectable, holm
from rambla_ray.scoring.stats import no_difference
from rambla_ray.storage import Folder

CONTRACT = {
    *("a", "b", "task", "variant", "n", "difference", "a_only", "b_only", "mcnemar_p", "holm_p"),
    *("bounds", "detectable"),
}
Outcomes = dict[
    str, list[tuple[str, bool | None]]
]  # By task, per item its id and whether it is right; None: unscored.


def directory_of(location: Path, answers: dict[str, Outcomes], baseline: str = "") -> RunDirectory:
    """A run directory of models, by whether each was right."""
    tasks = next(iter(answers.values()))
    how = spec({task: task_spec({"": len(items)}) for task, items in tasks.items()}, list(answers))
    how |= {"baseline": baseline} if baseline else {}
    directory = RunDirectory(Folder(str(location)))
    for model, of_task in answers.items():
        writer = directory.sample_writer(model, how)
        samples = [made(model, task, *item) for task, items in of_task.items() for item in items]
        writer.add(to_table(samples))
        writer.close()
    return directory


def made(model: str, task: str, item: str, right: bool | None) -> Sample:
    outcome = "failed" if right is None else "scored"
    return sample(item, "yes" if right else "no", "yes", model=model, task=task, outcome=outcome, error="gone")


def drawn(seed: int, share: float, items: int = 60, unscored: float = 0.1, task: str = "t") -> Outcomes:
    draw = random.Random(seed)
    return {task: [(f"i{n}", None if draw.random() < unscored else draw.random() < share) for n in range(items)]}


def test_a_comparison_is_what_counting_pairs_gives(tmp_path: Path) -> None:
    first, second = drawn(1, 0.6), drawn(2, 0.8)
    cell, whole = directory_of(tmp_path, {"a": first, "b": second}).score()["comparisons"]
    both = [(x, y) for (_, x), (_, y) in zip(first["t"], second["t"], strict=True) if None not in (x, y)]
    names = [i for (i, x), (_, y) in zip(first["t"], second["t"], strict=True) if (x, y) == (False, True)]
    a_only, b_only = both.count((True, False)), both.count((False, True))
    assert set(cell) == CONTRACT | {"a_items", "b_items", "scored_alone", "null_reasons"}
    assert [cell[name] for name in ("a", "b", "task", "variant")] == ["a", "b", "t", ""]
    assert cell["n"] == len(both)
    assert cell["difference"]["value"] == pytest.approx((a_only - b_only) / len(both))
    assert (cell["a_only"], cell["b_only"]) == (a_only, b_only)
    assert cell["b_items"] == sorted(names)
    assert cell["mcnemar_p"] == scipy_stats.binomtest(b_only, b_only + a_only).pvalue
    alone = [
        sum(x is None and y is not None for (_, x), (_, y) in zip(p, q, strict=True))
        for p, q in ((first["t"], second["t"]), (second["t"], first["t"]))
    ]
    assert [cell["scored_alone"][side] for side in ("b", "a")] == alone
    least = [sum(bool(x) for _, x in side["t"]) for side in (first, second)]
    most = [sum(x is not False for _, x in side["t"]) for side in (first, second)]
    assert cell["bounds"] == pytest.approx([(least[0] - most[1]) / 60, (most[0] - least[1]) / 60])
    assert whole["task"] == "all"
    own = {name: value for name, value in cell.items() if name not in ("a_items", "b_items")}
    assert whole == {**own, "task": "all"}, "of one cell, all tasks are that cell"


def test_each_two_are_compared_or_each_with_the_baseline(tmp_path: Path) -> None:
    assert [(pair.a, pair.b) for pair in pairs_of("abc", None)] == [("a", "b"), ("a", "c"), ("b", "c")]
    answers = {name: drawn(seed, 0.7) for seed, name in enumerate("abc")}
    found = directory_of(tmp_path, answers, baseline="b").score()["comparisons"]
    assert [(one["a"], one["b"], one["task"]) for one in found] == [
        *(("a", "b", "t"), ("a", "b", "all")),
        *(("c", "b", "t"), ("c", "b", "all")),
    ]


def test_a_positive_difference_says_that_the_model_is_better_than_the_baseline(tmp_path: Path) -> None:
    answers = {"better": drawn(1, 1.0, unscored=0), "worse": drawn(1, 0.0, unscored=0)}
    for baseline, difference in (("worse", 1), ("better", -1), ("", 1)):
        found = directory_of(tmp_path / f"on {baseline}", answers, baseline=baseline).score()["comparisons"]
        assert [one["difference"]["value"] for one in found] == [difference] * 2


def test_p_values_are_adjusted_over_the_run(tmp_path: Path) -> None:
    answers = {
        name: {**drawn(seed, share, task="t"), **drawn(seed + 9, share, task="u")}
        for seed, (name, share) in enumerate({"a": 0.5, "b": 0.7, "c": 0.9}.items())
    }
    found = directory_of(tmp_path, answers).score()["comparisons"]
    for tasks, size in ((("t", "u"), 6), (("all",), 3)):
        family = {f"{one['a']}{one['b']}{one['task']}": one for one in found if one["task"] in tasks}
        assert len(family) == size
        adjusted = holm({name: one["mcnemar_p"] for name, one in family.items()})
        assert {name: one["holm_p"] for name, one in family.items()} == adjusted


def test_the_suite_counts_items_and_not_samples(tmp_path: Path) -> None:
    """The same answers under two tasks say as much as under one, so neither p nor what can be shown gets better."""
    first, second = drawn(1, 0.5, unscored=0)["t"], drawn(2, 0.75, unscored=0)["t"]
    twice = {"a": {"t": first, "u": first}, "b": {"t": second, "u": second}}
    suite = directory_of(tmp_path, twice).score()["comparisons"][-1]
    change = [bool(x) - bool(y) for (_, x), (_, y) in zip(first, second, strict=True)]
    assert suite["task"] == "all"
    assert suite["n"] == 120
    assert suite["mcnemar_p"] == pytest.approx(no_difference(change, range(60)).p)
    assert suite["detectable"] == pytest.approx(detectable(60, sum(map(abs, change))))


def test_the_score_test_is_mcnemars_where_each_item_stands_once() -> None:
    change = [1] * 14 + [-1] * 5 + [0] * 41
    assert no_difference(change, range(60)).p == pytest.approx(scipy_stats.chi2.sf((14 - 5) ** 2 / 19, 1))
    assert no_difference([0, 0], ["a", "b"]).p == 1


@pytest.mark.parametrize(("n", "discordant"), [(100, 20), (890, 200), (890, 0), (50, 50), (12, 3)])
def test_what_n_can_show_is_shown_four_times_in_five(n: int, discordant: int) -> None:
    """By the normal approximation that the formula is of: n pairs of which a share is discordant."""
    least = detectable(n, discordant)
    assert isinstance(least, float)
    share = max(discordant / n, least)
    reach, z = scipy_stats.norm.ppf(0.975), (least * np.sqrt(n))
    power = scipy_stats.norm.cdf((z - reach * np.sqrt(share)) / np.sqrt(share - least**2)) if share > least**2 else 1
    assert power == pytest.approx(0.8)


def test_too_few_show_nothing() -> None:
    assert detectable(3, 1) is None
    assert detectable(0, 0) is None


def compared(tmp_path: Path, first: list[bool | None], second: list[bool | None]) -> dict[str, Any]:
    answers = {
        name: {"t": [(f"i{n:04}", right) for n, right in enumerate(marks)]}
        for name, marks in (("a", first), ("b", second))
    }
    return directory_of(tmp_path, answers).score()


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([False] * 40, [True] * 40, "b is better than a in t: a has -100.0 points"),
        ([True] * 40, [False] * 40, "a is better than b in t: a has +100.0 points"),
        ([True, False] * 20, [False, True] * 20, "no difference is shown between a and b in t: a has +0.0 points"),
        ([True] * 40, [True] * 40, "no difference is shown between a and b in t: a has +0.0 points"),
        ([None] * 40, [True] * 40, ""),
    ],
)
def test_the_verdict(first: list[bool | None], second: list[bool | None], verdict: str, tmp_path: Path) -> None:
    scores = compared(tmp_path, first, second)
    said = list(verdicts.lines(scores))
    assert len(verdicts.rows(scores)) == len(said) == bool(verdict)
    assert all(line.startswith(verdict) for line in said)
    assert to_json(scores)


@pytest.mark.parametrize(
    ("first", "second", "warned"),
    [
        (
            [True] * 40,
            [True] * 20 + [None] * 20,
            "20 of a alone, 0 of b alone; whatever the rest would have been, the difference is +0.0 to +50.0 points",
        ),
        ([True] * 40, [True] * 20 + [False] * 20, ""),
        ([False] * 9 + [None] * 30 + [True], [True] * 9 + [True] + [None] * 30, "is -97.5 to +52.5 points"),
        ([None] * 20 + [True] * 20, [None] * 20 + [False] * 20, ""),
    ],
)
def test_samples_that_were_scored_of_one_alone_are_named(
    first: list[bool | None], second: list[bool | None], warned: str, tmp_path: Path
) -> None:
    lines = list(verdicts.warnings(compared(tmp_path, first, second)))
    assert len(lines) == bool(warned)
    assert all(line.endswith(warned) or warned in line for line in lines)


def test_a_run_of_one_model_compares_nothing(tmp_path: Path) -> None:
    scores = directory_of(tmp_path, {"a": drawn(1, 0.5)}).score()
    assert scores["comparisons"] == []
    assert verdicts.rows(scores) == list(verdicts.lines(scores)) == list(verdicts.warnings(scores)) == []
