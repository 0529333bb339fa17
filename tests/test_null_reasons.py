"""Every null in metrics.json has its reason, and there is no NaN, however little a run holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_samples import ENDS, YES_NO, sample, spec, store, task_spec

from rambla_ray.results.directory import to_json
from rambla_ray.schema import Sample
from rambla_ray.scoring.undefined import INFINITE, NAN

TASKS = {
    "clean": task_spec({"": 3}),
    "spelling": task_spec({"n=0": 3, "n=1": 3, "n=10": 3}, "spelling/n=0"),
    "after": task_spec({"": 3}, "clean"),
    "alone": task_spec({"": 3}, "elsewhere"),
    "orders": task_spec({"order=yes-no": 3, "order=no-yes": 3}, "clean"),
    "scores": task_spec({"": 3}, labels=("1", "0")),
}
CELLS = [(task, variant) for task, how in TASKS.items() for variant in how["variants"]]


def missing(value: Any, where: str = "") -> Iterator[str]:
    """The dotted places of nulls, down to where a part explains its own."""
    if value is None:
        yield where
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not (isinstance(inner, Mapping) and "null_reasons" in inner) and key != "null_reasons":
                yield from missing(inner, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            if not (isinstance(inner, Mapping) and "null_reasons" in inner):
                yield from missing(inner, f"{where}[{number}]")


def explained(metrics: Any) -> None:
    """Check that the nulls and the reasons of each part are the same places."""
    for part in (metrics, *metrics["cells"], *metrics["effects"], *metrics["comparisons"]):
        reasons = {place: reason for place, reason in part["null_reasons"].items() if part.get(place) != {}}
        assert set(missing(part)) == set(reasons)
        assert all(part["null_reasons"].values())


def scored(samples: list[Sample]) -> Any:
    """metrics.json of a run of `TASKS` with these samples."""
    with TemporaryDirectory() as folder:
        metrics = json.loads(to_json(store(folder, spec(TASKS), samples).score()), parse_constant=pytest.fail)
    explained(metrics)
    return metrics


def reason(metrics: Any, task: str, place: str, variant: str = "") -> str:
    (cell,) = [cell for cell in metrics["cells"] if (cell["task"], cell["variant"]) == (task, variant)]
    found: str = cell["null_reasons"][place]
    return found


def effect(metrics: Any) -> Any:
    """What changes from one number of mutations to the next."""
    (spelling,) = [effect for effect in metrics["effects"] if effect["task"] == "spelling"]
    return spelling


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_every_null_of_any_small_run_has_its_reason(data: st.DataObject) -> None:
    samples = []
    for task, variant in CELLS:
        answers = YES_NO if task != "scores" else ("0.1", "0.9", "1", "0")
        for root_id in data.draw(st.lists(st.sampled_from("abc"), unique=True)):
            target = data.draw(st.sampled_from(TASKS[task]["labels"]))
            samples.append(
                sample(
                    root_id,
                    data.draw(st.sampled_from(answers)),
                    target,
                    task=task,
                    variant=variant,
                    outcome=data.draw(st.sampled_from(["scored", "scored", *ENDS])),
                    tokens=(1, data.draw(st.integers(0, 2))),
                    rambla_answer="" if task == "scores" else data.draw(st.sampled_from(["yes", "no", ""])) or None,
                )
            )
    scored(samples)


def everywhere(answer: str = "yes", target: str = "yes", outcome: str = "scored", items: int = 3) -> list[Sample]:
    """The same answer to every item of every task that is answered in words."""
    return [
        sample(str(item), answer, target, task=task, variant=variant, outcome=outcome)
        for task, variant in CELLS
        if task != "scores"
        for item in range(items)
    ]


@pytest.mark.parametrize("outcome", ENDS)
@pytest.mark.parametrize("items", [1, 3])
def test_every_null_of_a_run_in_which_all_is_alike_has_its_reason(outcome: str, items: int) -> None:
    metrics = scored(everywhere(outcome=outcome, items=items))
    if outcome != "scored":
        assert reason(metrics, "clean", "accuracy.value") == "no sample was scored"
        assert reason(metrics, "clean", "accuracy.ci95") == "no sample was scored"
        assert reason(metrics, "clean", "label_bias.yes") == "no sample was scored"
        assert reason(metrics, "after", "paired.difference") == "no item was scored in both"
        spelling = effect(metrics)
        assert spelling["null_reasons"]["slope"] == "fewer than two variants have a scored sample"


def test_a_run_without_a_sample_has_a_null_where_it_could_be_partial_alone() -> None:
    assert scored([])["partial"] == {"samples": 0, "expected": 27}
    whole = scored([*everywhere(), *(sample(str(item), "0.5", "1", task="scores") for item in range(3))])
    assert whole["null_reasons"] == {"partial": "every sample is there"}


def test_what_has_no_pair_says_why() -> None:
    metrics = scored(everywhere())
    assert reason(metrics, "clean", "paired") == "the task is not compared with another"
    assert reason(metrics, "alone", "paired") == "task elsewhere is not in this run"
    assert reason(metrics, "spelling", "paired", "n=0") == "it is what the others are compared with"
    without = scored([one for one in everywhere() if one.task != "clean"])
    assert reason(without, "after", "paired") == "task clean has no samples yet"


def test_a_change_from_zero_is_infinite_and_one_of_zero_from_zero_is_undefined() -> None:
    wrong = everywhere("no")
    for one in wrong:
        if one.variant == "n=10":
            one.answer = one.rambla_answer = "yes"
    spelling = effect(scored(wrong))
    assert spelling["rambla"]["recall"] == [None]
    assert spelling["null_reasons"]["rambla.recall[0]"] == INFINITE
    spelling = effect(scored(everywhere("no")))
    assert spelling["null_reasons"]["rambla.recall[0]"] == NAN


@pytest.mark.parametrize("score", ["0.5", "1"])
def test_scores_of_one_label_have_no_area(score: str) -> None:
    metrics = scored([sample(str(item), "0.5" if item else score, "1", task="scores") for item in range(3)])
    assert reason(metrics, "scores", "score.roc_auc") == "all scored samples have the same label"
    assert reason(metrics, "scores", "accuracy.bounds") == "the model gives scores, not answers"
