"""The overlap of words."""

from __future__ import annotations

import pytest
from judge_models import ask

from rambla_ray.actors.overlap import OverlapModel
from rambla_ray.config.load import load
from rambla_ray.config.sections import Pool
from rambla_ray.schema import canonical_json


@pytest.mark.parametrize(
    ("metric", "score"),
    [
        ("bleu", (3 / 4 * 2 / 3 * 1 / 2 * 0 / 1) ** 0.25),
        ("rouge1", 2 * (3 / 4 * 3 / 5) / (3 / 4 + 3 / 5)),
        ("rouge2", 2 * (2 / 3 * 2 / 4) / (2 / 3 + 2 / 4)),
        ("rougeL", 2 * (3 / 4 * 3 / 5) / (3 / 4 + 3 / 5)),
    ],
)
def test_overlap_is_that_of_the_words_with_the_pair_as_reference(metric: str, score: float) -> None:
    model = OverlapModel(OverlapModel.Params(metric=metric), Pool(), None)
    (response,) = ask(model, ("one two three four", "one two three and more"))
    assert response.text == repr(float(response.text))
    assert float(response.text) == pytest.approx(score)
    assert canonical_json(model.identity()) == f'{{"class":"OverlapModel","metric":"{metric}"}}'


@pytest.mark.parametrize(
    ("name", "metric"), [("bleu", "bleu"), ("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rougel", "rougeL")]
)
def test_each_metric_has_its_config(name: str, metric: str) -> None:
    assert load([f"model={name}", "task=mcqabaseline"]).targets[name].params.metric == metric
