"""metrics.json: its numbers are those of counting the samples one by one."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_samples import TASKS, many, planned, sample, spec, store, task_spec

from rambla_ray.results.directory import to_json
from rambla_ray.schema import Outcome, Sample, Step


def naive(samples: list[Sample]) -> dict[str, Any]:
    """A cell's numbers, counted one by one."""
    scored = [one for one in samples if one.outcome == "scored"]
    right = [one for one in scored if one.answer == one.target]
    lengths = [step.completion_tokens for one in samples for step in one.steps if not step.failed]
    counted = [one for one in samples if one.outcome != "failed"]
    return {
        "n": len(samples),
        "outcomes": {outcome.value: sum(one.outcome == outcome for one in samples) for outcome in Outcome},
        "coverage": len(scored) / len(samples),
        "accuracy": len(right) / len(scored),
        "bounds": [len(right) / len(samples), (len(right) + len(samples) - len(scored)) / len(samples)],
        "prompt": sum(step.prompt_tokens for one in samples for step in one.steps),
        "lengths": {"mean": statistics.fmean(lengths), "median": statistics.median(lengths)},
        "std": statistics.pstdev(lengths),
        "bias_yes": sum((one.answer == "yes") - (one.target == "yes") for one in scored) / len(scored),
        "differ": sum(one.answer != one.rambla_answer for one in samples),
        "matrix": [
            [
                sum((one.label, one.rambla_answer or "null") == (label, answer) for one in counted)
                for answer in ("no", "null", "yes")
            ]
            for label in ("no", "null", "yes")
        ],
    }


def naive_pairs(samples: list[Sample], clean: list[Sample]) -> dict[str, Any]:
    """What changes from one cell to the other, item by item."""
    before = {one.root_id: one for one in clean if one.outcome == "scored"}
    pairs = [(before[one.root_id], one) for one in samples if one.outcome == "scored" and one.root_id in before]
    right = [(one.answer == one.target, other.answer == other.target) for one, other in pairs]
    return {
        "n": len(pairs),
        "right_to_wrong": right.count((True, False)),
        "wrong_to_right": right.count((False, True)),
        "consistency": sum(one.answer == other.answer for one, other in pairs) / len(pairs),
        "difference": sum(now - was for was, now in right) / len(pairs),
    }


@pytest.fixture(scope="module")
def twenty_thousand(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Sample], dict[str, Any]]:
    samples = many(TASKS, 4000)
    random.Random(5).shuffle(samples)
    scores = store(tmp_path_factory.mktemp("run"), planned(4000), samples, block=700).score()
    return samples, scores


def test_the_numbers_are_those_of_counting_one_by_one(
    twenty_thousand: tuple[list[Sample], dict[str, Any]],
) -> None:
    samples, scores = twenty_thousand
    by_cell: dict[tuple[str, str], list[Sample]] = {}
    for one in samples:
        by_cell.setdefault((one.task, one.variant), []).append(one)
    assert [(cell["task"], cell["variant"]) for cell in scores["cells"]] == [
        (task, variant) for task, variants in TASKS.items() for variant in variants
    ]
    for cell in scores["cells"]:
        expected = naive(by_cell[cell["task"], cell["variant"]])
        low, high = cell["accuracy"]["ci95"]
        width = 1.96 * math.sqrt(expected["accuracy"] * (1 - expected["accuracy"]) / cell["outcomes"]["scored"])
        assert (low, high) == pytest.approx((expected["accuracy"] - width, expected["accuracy"] + width), abs=1e-3)
        assert cell["lengths"].pop("std") == pytest.approx(expected.pop("std"))
        assert {
            "n": cell["n"],
            "outcomes": cell["outcomes"],
            "coverage": cell["coverage"],
            "accuracy": cell["accuracy"]["value"],
            "bounds": cell["accuracy"]["bounds"],
            "prompt": cell["tokens"]["prompt"],
            "lengths": cell["lengths"],
            "bias_yes": cell["label_bias"]["yes"]["value"],
            "differ": cell["readers"]["differ"],
            "matrix": cell["rambla"]["confusion_matrix"],
        } == expected
    pairs = {"spelling n=3": ("spelling", "n=0"), "spelling n=10": ("spelling", "n=0"), "wrong-way": ("clean", "")}
    compared = {f"{cell['task']} {cell['variant']}".rstrip(): cell for cell in scores["cells"] if cell["paired"]}
    assert set(compared) == set(pairs)
    for where, cell in compared.items():
        expected = naive_pairs(by_cell[cell["task"], cell["variant"]], by_cell[pairs[where]])
        found = {**cell["paired"], "difference": cell["paired"]["difference"]["value"]}
        assert {name: found[name] for name in expected} == pytest.approx(expected)
        low, high = cell["paired"]["difference"]["ci95"]
        width = 1.96 * math.sqrt(expected["right_to_wrong"] + expected["wrong_to_right"]) / expected["n"]
        assert (low, high) == pytest.approx(
            (expected["difference"] - width, expected["difference"] + width), abs=0.1 * width
        )
    (effect,) = scores["effects"]
    points = [
        (float(one.variant.removeprefix("n=")), float(one.answer == one.target))
        for one in samples
        if one.task == "spelling" and one.outcome == "scored"
    ]
    assert effect["slope"]["value"] == pytest.approx(np.polyfit(*zip(*points, strict=True), 1)[0], rel=1e-6)
    assert [row["pairs"] for row in effect["variants"][1:]] == [
        compared[f"spelling {variant}"]["paired"]["n"] for variant in ("n=3", "n=10")
    ]


def test_examples_of_differing_readers_have_the_samples_own_texts(
    twenty_thousand: tuple[list[Sample], dict[str, Any]],
) -> None:
    samples, scores = twenty_thousand
    for cell in scores["cells"]:
        of_cell = [one for one in samples if (one.task, one.variant) == (cell["task"], cell["variant"])]
        first = sorted((one for one in of_cell if one.answer != one.rambla_answer), key=lambda one: one.root_id)[:3]
        assert cell["readers"]["examples"] == [
            {
                "root_id": one.root_id,
                "text": one.steps[-1].text,
                "robust": one.answer,
                "rambla": one.rambla_answer,
            }
            for one in first
        ]


def test_tokens_are_those_of_the_model_under_test(tmp_path: Path) -> None:
    judged = sample("1", tokens=(10, 3))
    judged.steps.append(
        Step("generate:verdict", "judge", "m", "1", "?", "Yes", prompt_tokens=500, completion_tokens=70)
    )
    bare = sample("2", outcome="failed", tokens=(1, 0))
    (cell,) = store(tmp_path, spec({"t": task_spec({"": 2})}), [bare, judged]).score()["cells"]
    assert cell["tokens"] == {"prompt": 11, "completion": 3}
    assert cell["lengths"] == {"mean": 3.0, "median": 3.0, "std": 0.0}


def test_metrics_are_the_same_bytes_in_whatever_order_samples_end(tmp_path: Path) -> None:
    samples = many(TASKS, 300)
    samples += [sample("item-1", "no", task="clean", tokens=(3, 9))]  # twice there, and not the same
    found = set()
    for seed, block in enumerate((1, 50, 10_000)):
        random.Random(seed).shuffle(samples)
        found.add(to_json(store(tmp_path / str(seed), planned(300), samples, block=block).score()))
    assert len(found) == 1


def test_a_model_that_gives_scores_is_measured_by_the_area(tmp_path: Path) -> None:
    scores = ["0.9", "0.8", "0.3", "0.1", "1", "0.2"]
    labels = ["1", "1", "1", "0", "0", "0"]
    samples = [sample(str(n), scores[n], labels[n], label=labels[n]) for n in range(6)] + [
        sample("7", "", "1", outcome="failed")
    ]
    directory = store(tmp_path, spec({"t": task_spec({"": 7}, labels=("1", "0"))}), samples)
    (cell,) = directory.score()["cells"]
    assert cell["score"]["roc_auc"]["value"] == pytest.approx(6 / 9)
    assert (cell["accuracy"]["value"], cell["coverage"]) == (None, 6 / 7)
    assert cell["null_reasons"]["accuracy.value"] == "the model gives scores, not answers"
    assert to_json(directory.write_metrics()) == (tmp_path / "metrics.json").read_bytes()
