"""Similarity of texts, against RAmBLA's recorded results and tables of our own."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rambla_cases import recorded

from rambla_ray.scoring.similarity import bleu, combine_nli, inner_product, rouge

BOTH = ["strict", "relaxed", "average"]
LABELS = ["contradiction", "neutral", "entailment"]


# Vectors


@pytest.mark.parametrize(
    ("a", "b", "product"),
    [([], [], 0.0), ([2.0], [-3.0], -6.0), ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], 32.0), ([1e16, 1, -1e16], [1] * 3, 1.0)],
)
def test_the_inner_product_is_a_sum_of_products(a: list[float], b: list[float], product: float) -> None:
    assert inner_product(a, b) == inner_product(b, a) == product


@pytest.mark.parametrize(
    ("a", "b"), [([1.0], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0]), ([math.inf], [1.0]), ([1e200], [1e200])]
)
def test_vectors_without_an_inner_product_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match=r"shorter|longer|not finite"):
        inner_product(a, b)


# NLI


def test_nli_is_combined_as_rambla_does() -> None:
    for case in recorded("nli_cases"):
        for strategy in BOTH:
            ours = combine_nli(case["forward"], case["backward"], strategy)
            if case[strategy] == "nan":  # RAmBLA's softmax overflows
                assert ours == repr((1 + 1 / 3) / 2)
            elif isinstance(case[strategy], str):
                assert ours == case[strategy]
            else:
                assert float(ours) == pytest.approx(case[strategy], rel=1e-14)


def saying(label: str) -> dict[str, float]:
    return {name: 3.0 if name == label else 0.0 for name in LABELS}


@pytest.mark.parametrize(
    ("forward", "backward", "strict", "relaxed"),
    [
        ("entailment", "entailment", "1", "1"),
        ("entailment", "neutral", "0", "1"),
        ("neutral", "entailment", "0", "1"),
        ("neutral", "neutral", "0", "0"),
        ("entailment", "contradiction", "0", "0"),
        ("contradiction", "entailment", "0", "0"),
        ("neutral", "contradiction", "0", "0"),
        ("contradiction", "contradiction", "0", "0"),
    ],
)
def test_both_directions_decide(forward: str, backward: str, strict: str, relaxed: str) -> None:
    assert combine_nli(saying(forward), saying(backward), "strict") == strict
    assert combine_nli(saying(forward), saying(backward), "relaxed") == relaxed


@pytest.mark.parametrize("backward", [None, {"entailment": 9.0, "neutral": 0.0}])
def test_unidirectional_is_the_probability_of_entailment_forward(backward: dict[str, float] | None) -> None:
    logits = {"neutral": 0.0, "entailment": math.log(3.0)}
    assert float(combine_nli(logits, backward, "unidirectional")) == pytest.approx(0.75)


@pytest.mark.parametrize(("large", "probability"), [(1e6, 1.0), (-1e6, 0.0), (1e308, 1.0)])
def test_large_logits_do_not_overflow(large: float, probability: float) -> None:
    logits = {"entailment": large, "neutral": 0.0, "contradiction": 0.0}
    assert float(combine_nli(logits, logits, "average")) == probability


LOGITS = st.lists(st.floats(-50, 50), min_size=3, max_size=3).map(lambda row: dict(zip(LABELS, row, strict=True)))


@given(LOGITS, LOGITS)
def test_a_strict_pair_is_a_relaxed_one_and_neither_direction_goes_first(
    one: dict[str, float], other: dict[str, float]
) -> None:
    for strategy in BOTH:
        assert combine_nli(one, other, strategy) == combine_nli(other, one, strategy)
    assert combine_nli(one, other, "strict") <= combine_nli(one, other, "relaxed")
    assert 0 <= float(combine_nli(one, other, "average")) <= 1


@pytest.mark.parametrize(
    ("forward", "backward", "strategy", "says"),
    [
        (saying("neutral"), None, "strict", "needs both directions"),
        (saying("neutral"), {"entailment": 1.0}, "average", "labels differ"),
        ({"yes": 1.0, "no": 0.0}, {"yes": 1.0, "no": 0.0}, "strict", "no label is named entailment: yes, no"),
        ({"yes": 1.0, "no": 0.0}, None, "unidirectional", "no label is named entailment"),
        ({**saying("neutral"), "neutral": math.nan}, saying("neutral"), "relaxed", "not finite"),
        ({**saying("neutral"), "neutral": math.inf}, None, "unidirectional", "not finite"),
    ],
)
def test_logits_that_cannot_be_combined_are_refused(forward: Any, backward: Any, strategy: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        combine_nli(forward, backward, strategy)


# Words


@pytest.mark.parametrize("kind", ["bleu4", "bleu2", "rouge1", "rouge2", "rougeL"])
def test_words_overlap_as_in_rambla(kind: Any) -> None:
    for case in recorded("ngram_cases"):
        texts = case["prediction"], case["reference"]
        ours = bleu(*texts, max_order=int(kind[-1])) if kind.startswith("bleu") else rouge(*texts, kind)
        assert ours == pytest.approx(case[kind], abs=1e-14)


SENTENCE = "The dose was p<0.05 lower, in 12 of the patients."


@pytest.mark.parametrize("kind", ["bleu", "rouge1", "rouge2", "rougeL"])
@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [(SENTENCE, SENTENCE, 1.0), ("", SENTENCE, 0.0), (SENTENCE, "", 0.0), ("", "", 0.0), (" \n", SENTENCE, 0.0)],
)
def test_a_text_overlaps_itself_whole_and_an_empty_one_not_at_all(
    kind: Any, prediction: str, reference: str, score: float
) -> None:
    ours = bleu(prediction, reference) if kind == "bleu" else rouge(prediction, reference, kind)
    assert ours == pytest.approx(score, abs=1e-14)


def test_the_prediction_is_what_brevity_is_charged_to() -> None:
    whole, part = "one two three four five six seven eight", "one two three four"
    assert bleu(part, whole) == pytest.approx(math.exp(1 - 8 / 4))
    assert bleu(whole, part) == pytest.approx((4 / 8 * 3 / 7 * 2 / 6 * 1 / 5) ** 0.25)
