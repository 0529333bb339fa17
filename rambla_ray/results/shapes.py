"""The shapes of a run directory's documents: what each must hold so that it can be shown, audited and continued.

Only what is read is checked. What a later version adds is passed over, and what an earlier one lacked may be missing.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from rambla_ray.results.judge_shapes import Corrected, JudgeCalibration, Panel, RunPanel
from rambla_ray.results.shape import Estimate, Interval, Shape
from rambla_ray.schema import Outcome


def _all_outcomes(counts: dict[str, int]) -> dict[str, int]:
    if missing := [outcome for outcome in Outcome if outcome not in counts]:
        raise ValueError(f"there is no count of {missing[0]}")
    return counts


class _Accuracy(Shape):
    value: float | None
    ci95: Interval | None
    bounds: Interval | None


class _Example(Shape):
    text: str
    robust: str | None
    rambla: str | None


class _Readers(Shape):
    differ: int
    examples: list[_Example]


class _Paired(Shape):
    n: int
    with_: str = Field(alias="with")
    difference: Estimate | None
    right_to_wrong: int
    wrong_to_right: int
    consistency: float | None
    mcnemar_p_holm: float | None


class _Score(Shape):
    roc_auc: Estimate | None


class _Cut(Shape):
    count: int
    share: float


class _ServedBy(Shape):
    role: str
    config: str = ""
    model: str
    system_fingerprint: str
    provider: str
    answers: int


class _CalibrationError(Shape):
    value: float | None


class _RocAreas(Shape):
    value: float | None
    ci95: Interval | None


class _RiskCoverage(Shape):
    aurc: float | None


class _Calibration(Shape):
    n: int
    brier: Estimate | None
    ece: _CalibrationError
    auroc: _RocAreas | None
    risk_coverage: _RiskCoverage


class _OverItems(Shape):
    value: float | None
    ci95: Interval | None


class _Repeats(Shape):
    epochs: int
    consistency: _OverItems | None
    majority: _OverItems | None
    pass_at: dict[str, _OverItems] | None = Field(alias="pass@k")
    pass_hat: dict[str, _OverItems] | None = Field(alias="pass^k")


class _Cell(Shape):
    model: str
    task: str
    variant: str
    n: int
    outcomes: Annotated[dict[str, int], AfterValidator(_all_outcomes)]
    coverage: float | None
    accuracy: _Accuracy
    paired: _Paired | None
    score: _Score = _Score(roc_auc=None)
    readers: _Readers | None = None
    read_by: dict[str, int] = {}
    cut: _Cut | None = None
    cut_by_role: dict[str, int] = {}
    served_by: list[_ServedBy] = []
    label_bias: dict[str, Estimate | None] | None = None
    calibration: _Calibration | None = None
    repeats: _Repeats | None = None
    panel: Panel | None = None
    corrected: Corrected | None = None
    null_reasons: dict[str, str] = {}


class _OfPhrasing(Shape):
    variant: str
    value: float


class _Phrasings(Shape):
    of: int
    n: int
    accuracy: Estimate | None
    lowest: _OfPhrasing | None
    highest: _OfPhrasing | None
    sd: float | None
    same_answer: Estimate | None


class _Effect(Shape):
    model: str
    task: str
    slope: Estimate | None = None
    phrasings: _Phrasings | None = None


class _ScoredAlone(Shape):
    a: int
    b: int
    neither: int


class _Comparison(Shape):
    """Two models on the same samples of a task's variant, or of all tasks."""

    a: str
    b: str
    task: str
    variant: str
    n: int | None
    difference: Estimate | None
    a_only: int | None
    b_only: int | None
    scored_alone: _ScoredAlone | None
    holm_p: float | None
    bounds: Interval | None
    detectable: float | None


def of_this_form(comparisons: Any) -> Any:
    """A run's comparisons but for those of an earlier version, whose entries held all cells of two models."""
    if not isinstance(comparisons, list):
        return comparisons
    return [one for one in comparisons if not (isinstance(one, dict) and "cells" in one)]


class _Partial(Shape):
    samples: int
    expected: int


class _Wide(Shape):
    model: str
    task: str
    variant: str
    width: float


class _Verdict(Shape):
    a: str
    b: str
    interval: Interval
    verdict: str


class _Until(Shape):
    """How a run ended that could end before all items were asked."""

    rule: dict[str, float]
    items: int
    of: int
    settled: bool
    wide: list[_Wide] = []
    verdicts: list[_Verdict] = []


class Metrics(Shape):
    """metrics.json."""

    scoring: int = 1
    synthetic: bool
    partial: _Partial | None
    roles: dict[str, str]
    cells: list[_Cell]
    effects: list[_Effect]
    comparisons: Annotated[list[_Comparison], BeforeValidator(of_this_form)] = []
    until: _Until | None = None
    panel: RunPanel | None = None
    judge_calibration: JudgeCalibration | None = None


class _ModelCalls(Shape):
    model: str
    role: str
    calls: int
    answered: int
    reused: int
    retried: int
    hedged: int
    repeated: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    waited_s: float
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class _Invocation(Shape):
    calls: int
    wall_s: float
    finished: bool


class _Saved(Shape):
    calls_at_most: int
    beyond: int


class Calls(Shape):
    """calls.json."""

    models: list[_ModelCalls]
    until: _Saved | None = None
    invocations: list[_Invocation] = Field(min_length=1)
    wall_s: float


class PlanNotes(Shape):
    """plan.json, of which only the notes are read again."""

    notes: list[str] = []


class Environment(Shape):
    """env.json, which is for people."""

    packages: dict[str, str | None]
    models: dict[str, Any]
