"""How alike two texts are: of two vectors, of what an NLI classifier says, of their words. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

ENTAILMENT, NEUTRAL = "entailment", "neutral"
Strategy = Literal["strict", "relaxed", "average", "unidirectional"]
RougeKind = Literal["rouge1", "rouge2", "rougeL"]


def inner_product(a: Sequence[float], b: Sequence[float]) -> float:
    """The sum of a_i * b_i. Raises ValueError when the lengths differ or the sum is not a number."""
    total = math.fsum(x * y for x, y in zip(a, b, strict=True))
    if not math.isfinite(total):
        raise ValueError("the inner product is not finite")
    return total


def combine_nli(forward: Mapping[str, float], backward: Mapping[str, float] | None, strategy: Strategy) -> str:
    """Whether two texts say the same, from an NLI classifier's logits, as a model answers: a decision or a float.

    strict: "1" if both directions' likeliest label is entailment, else "0".
    relaxed: "1" if one direction's is entailment and the other's entailment or neutral, else "0".
    average: the mean of both directions' probability of entailment.
    unidirectional: the probability of entailment, forward alone.

    Of labels that are equally likely the first counts, as in RAmBLA; probabilities are shifted by the largest logit,
    so that none overflows, where RAmBLA's are NaN.

    Args:
        forward: label to logit, first text as premise.
        backward: label to logit, second text as premise; only `unidirectional` goes without.
        strategy: how the two become one.

    Raises:
        ValueError: no label is named entailment, the directions' labels differ, a logit is not finite, or `backward`
            is missing.
    """
    if strategy == "unidirectional":
        return repr(_probability(forward, ENTAILMENT))
    if backward is None:
        raise ValueError(f"strategy {strategy} needs both directions")
    if forward.keys() != backward.keys():
        raise ValueError(f"labels differ: {', '.join(forward)} and {', '.join(backward)}")
    if strategy == "average":
        return repr((_probability(forward, ENTAILMENT) + _probability(backward, ENTAILMENT)) / 2)
    likeliest = {_likeliest(forward), _likeliest(backward)}
    if strategy == "strict":
        return "1" if likeliest == {ENTAILMENT} else "0"
    return "1" if ENTAILMENT in likeliest and likeliest <= {ENTAILMENT, NEUTRAL} else "0"


def _probability(logits: Mapping[str, float], label: str) -> float:
    """softmax(logits)[label]."""
    largest = logits[_likeliest(logits)]
    return math.exp(logits[label] - largest) / math.fsum(math.exp(logit - largest) for logit in logits.values())


def _likeliest(logits: Mapping[str, float]) -> str:
    if ENTAILMENT not in logits:
        raise ValueError(f"no label is named {ENTAILMENT}: {', '.join(logits)}")
    if not all(map(math.isfinite, logits.values())):
        raise ValueError(f"logits are not finite: {dict(logits)}")
    return max(logits, key=lambda label: logits[label])


def bleu(prediction: str, reference: str, max_order: int = 4) -> float:
    """BLEU of one pair, from 0 to 1: 13a tokens, n-grams up to `max_order`, no smoothing.

    A text of fewer than `max_order` tokens, so an empty one too, has 0.0 (RAmBLA fails on an empty text).
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(smooth_method="none", tokenize="13a", max_ngram_order=max_order)
    return float(metric.corpus_score([prediction], [[reference]]).score) / 100


def rouge(prediction: str, reference: str, kind: RougeKind) -> float:
    """The F-measure of ROUGE of one pair, from 0 to 1, without stemming; 0.0 where a text has no words."""
    from rouge_score.rouge_scorer import RougeScorer

    return float(RougeScorer([kind]).score(reference, prediction)[kind].fmeasure)
