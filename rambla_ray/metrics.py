"""Metrics: from the samples of a cell to its numbers. Pure; nothing here knows where samples come from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rambla_ray.rambla import NULL, continuous_metrics, fewshot_bias, quality, rambla_metrics, relative_change
from rambla_ray.schema import Outcome
from rambla_ray.stats import Estimate, bootstrap_mean, mcnemar_exact, roc_auc, slope, wilson

CONTINUOUS = ("mse", "mae", "r_squared", "stats_pearsonr", "stats_spearmanr")  # of a model that gives scores

# Outcomes in which the model had its say, or had none because of its own limits: RAmBLA counts these as null.
NULL_IN_RAMBLA = frozenset({Outcome.UNPARSED, Outcome.EMPTY, Outcome.TRUNCATED, Outcome.REFUSED, Outcome.TOO_LONG})

SEED = 1234  # of every bootstrap
EXAMPLES = 3  # of answers on which the readers differ, kept per cell


@dataclass(frozen=True, slots=True)
class Scored:
    """One sample as the metrics see it. `label` is the dataset's own; `target` the right answer in this task."""

    root_id: str
    target: str
    label: str
    answer: str
    rambla_answer: str
    outcome: Outcome
    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def correct(self) -> bool:
        """Whether it was scored, and right."""
        return self.outcome == Outcome.SCORED and self.answer == self.target


def cell_metrics(samples: Sequence[Scored], labels: Sequence[str]) -> dict[str, Any]:
    """The numbers of one cell, without `paired`.

    `accuracy` is over scored samples; `coverage` says how many those are; `bounds` what the accuracy would be if
    everything not scored were wrong, or right. Where a model gave scores instead of answers, accuracy is None and
    `score` says how well they tell the labels apart.
    """
    n = len(samples)
    outcomes = Counter(sample.outcome for sample in samples)
    scored = [sample for sample in samples if sample.outcome == Outcome.SCORED]
    common = {
        "n": n,
        "outcomes": {outcome.value: outcomes[outcome] for outcome in Outcome},
        "coverage": len(scored) / n,
        "tokens": {
            "prompt": sum(sample.prompt_tokens for sample in samples),
            "completion": sum(sample.completion_tokens for sample in samples),
        },
        "lengths": quality([sample.completion_tokens for sample in samples if sample.completion_tokens]),
    }
    if any(sample.answer not in labels for sample in scored):
        return {**common, **_score_metrics(scored)}
    right = sum(sample.correct for sample in scored)
    value, interval = _accuracy(scored)
    return {
        **common,
        "accuracy": {"value": value, "ci95": interval, "bounds": [right / n, (right + n - len(scored)) / n]},
        "label_bias": {label: _label_bias(scored, label) for label in labels},
        "readers": _readers(samples),
        "rambla": _rambla_of(samples, labels),
    }


def _accuracy(scored: Sequence[Scored]) -> tuple[float | None, list[float] | None]:
    """The share of scored samples that are right, and its 95 % interval; None for both without any."""
    if not scored:
        return None, None
    right = sum(sample.correct for sample in scored)
    return right / len(scored), list(wilson(right, len(scored)))


def _rambla_of(samples: Sequence[Scored], labels: Sequence[str]) -> dict[str, Any]:
    asked = [s for s in samples if s.outcome == Outcome.SCORED or s.outcome in NULL_IN_RAMBLA]
    targets = [sample.label for sample in asked]
    predictions = [sample.rambla_answer or NULL for sample in asked]
    found = rambla_metrics(targets, predictions, [*labels, NULL])
    return {**found, **fewshot_bias(targets, predictions, [*labels, NULL])} if found else found


def _score_metrics(scored: Sequence[Scored]) -> dict[str, Any]:
    values = [float(sample.answer) for sample in scored]
    positives = [float(sample.label) for sample in scored]
    area = roc_auc(positives, values, [sample.root_id for sample in scored], SEED)
    return {
        "accuracy": {"value": None, "ci95": None, "bounds": None},
        "score": {"roc_auc": _estimate(area)},
        "rambla": continuous_metrics(values, positives, CONTINUOUS) if area else {},
    }


def _label_bias(scored: Sequence[Scored], label: str) -> dict[str, Any] | None:
    """How much more often a label is given than it is right, in share of the scored samples."""
    surplus = [float(s.answer == label) - float(s.target == label) for s in scored]
    return _estimate(bootstrap_mean(surplus, [s.root_id for s in scored], SEED))


def _readers(samples: Sequence[Scored]) -> dict[str, Any]:
    """On how many texts the two readers differ, and some of them."""
    differ = [s for s in samples if s.answer != s.rambla_answer]
    return {
        "differ": len(differ),
        "examples": [
            {"root_id": s.root_id, "text": s.text[:200], "robust": s.answer, "rambla": s.rambla_answer}
            for s in differ[:EXAMPLES]
        ],
    }


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    return {"value": found.value, "ci95": found.ci95 and list(found.ci95)} if found else None


def paired_metrics(samples: Sequence[Scored], clean: Sequence[Scored]) -> dict[str, Any]:
    """How answers to the same items differ from those of the task they are paired with.

    Only items scored in both count. `difference` is that of the accuracies, with a bootstrap interval over items;
    `mcnemar_p` the exact two-sided p of McNemar's test on right and wrong.
    """
    pairs = _pairs(clean, samples)
    to_wrong = sum(before.correct and not after.correct for before, after in pairs)
    to_right = sum(after.correct and not before.correct for before, after in pairs)
    same = sum(before.answer == after.answer for before, after in pairs)
    return {
        "n": len(pairs),
        "right_to_wrong": to_wrong,
        "wrong_to_right": to_right,
        "consistency": same / len(pairs) if pairs else None,
        "difference": _difference(pairs),
        "mcnemar_p": mcnemar_exact(to_wrong, to_right) if pairs else None,
    }


def variant_effects(variants: Mapping[str, Sequence[Scored]]) -> dict[str, Any]:
    """What changes from variant to variant of one task, on items scored in both.

    Args:
        variants: the samples of each variant (`n=10`), in the plan's order; the first is what others are compared
            with.

    Returns:
        `variants`: per variant its accuracy and its difference from the first, with a bootstrap interval over items;
        where variants are numbers also `slope`, the change of accuracy per unit, and RAmBLA's relative change.
    """
    names = list(variants)
    first = variants[names[0]]
    rows = []
    accuracies: dict[str, float | None] = {}
    for name in names:
        scored = [sample for sample in variants[name] if sample.outcome == Outcome.SCORED]
        pairs = _pairs(first, variants[name])
        accuracies[name], interval = _accuracy(scored)
        rows.append(
            {
                "variant": name,
                "scored": len(scored),
                "accuracy": accuracies[name],
                "ci95": interval,
                "pairs": len(pairs),
                "difference": _difference(pairs) if name != names[0] else None,
            }
        )
    effects: dict[str, Any] = {"by": names[0].partition("=")[0], "compared_with": names[0], "variants": rows}
    if effects["by"] == "n":
        points = [
            (float(name.removeprefix("n=")), float(sample.correct), sample.root_id)
            for name in names
            for sample in variants[name]
            if sample.outcome == Outcome.SCORED
        ]
        effects["slope"] = _estimate(_slope(points)) if points else None
        # RAmBLA had no clean variant: its series begins with one mutation
        series = [accuracy for name, accuracy in accuracies.items() if name != "n=0"]
        effects["rambla"] = relative_change({"recall": series})
    return effects


def _slope(points: Sequence[tuple[float, float, str]]) -> Estimate | None:
    x, y, roots = zip(*points, strict=True)
    return slope(x, y, roots, SEED)


def _pairs(first: Sequence[Scored], second: Sequence[Scored]) -> list[tuple[Scored, Scored]]:
    """Samples of the same item that were scored in both, in the order of the second."""
    by_root = {sample.root_id: sample for sample in first if sample.outcome == Outcome.SCORED}
    return [(by_root[s.root_id], s) for s in second if s.outcome == Outcome.SCORED and s.root_id in by_root]


def _difference(pairs: Sequence[tuple[Scored, Scored]]) -> dict[str, Any] | None:
    change = [float(after.correct) - float(before.correct) for before, after in pairs]
    return _estimate(bootstrap_mean(change, [after.root_id for _, after in pairs], SEED))


def without_nan(value: Any, where: str, reasons: dict[str, str]) -> Any:
    """`value` with every NaN or infinity as None, and `reasons` told where they stood."""
    if isinstance(value, float) and not math.isfinite(value):
        reasons[where] = "0/0 is undefined"
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(inner, f"{where}.{key}" if where else key, reasons) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner, f"{where}[{place}]", reasons) for place, inner in enumerate(value)]
    return value
