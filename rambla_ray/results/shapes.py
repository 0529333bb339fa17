"""The shapes of a run directory's documents: what each must hold so that it can be shown, audited and continued.

Only what is read is checked. What a later version adds is passed over, and what an earlier one lacked may be missing.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from rambla_ray.schema import Outcome


class Shape(BaseModel):
    """What must be in a document, of just these types."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", defer_build=True)


def _all_outcomes(counts: dict[str, int]) -> dict[str, int]:
    if missing := [outcome for outcome in Outcome if outcome not in counts]:
        raise ValueError(f"there is no count of {missing[0]}")
    return counts


_Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class _Estimate(Shape):
    """A number and its interval."""

    value: float
    ci95: _Interval | None


class _Accuracy(Shape):
    value: float | None
    ci95: _Interval | None
    bounds: _Interval | None


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
    difference: _Estimate | None
    right_to_wrong: int
    wrong_to_right: int
    consistency: float | None
    mcnemar_p_holm: float | None


class _Score(Shape):
    roc_auc: _Estimate | None


class _Cut(Shape):
    count: int
    share: float


class _ServedBy(Shape):
    role: str
    model: str
    system_fingerprint: str
    provider: str
    answers: int


class _CalibrationError(Shape):
    value: float | None


class _RocAreas(Shape):
    value: float | None
    ci95: _Interval | None


class _RiskCoverage(Shape):
    aurc: float | None


class _Calibration(Shape):
    n: int
    brier: _Estimate | None
    ece: _CalibrationError
    auroc: _RocAreas | None
    risk_coverage: _RiskCoverage


class _OverItems(Shape):
    value: float | None
    ci95: _Interval | None


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
    label_bias: dict[str, _Estimate | None] | None = None
    calibration: _Calibration | None = None
    repeats: _Repeats | None = None


class _OfPhrasing(Shape):
    variant: str
    value: float


class _Phrasings(Shape):
    of: int
    n: int
    accuracy: _Estimate | None
    lowest: _OfPhrasing | None
    highest: _OfPhrasing | None
    sd: float | None
    same_answer: _Estimate | None


class _Effect(Shape):
    model: str
    task: str
    slope: _Estimate | None = None
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
    difference: _Estimate | None
    a_only: int | None
    b_only: int | None
    scored_alone: _ScoredAlone | None
    holm_p: float | None
    bounds: _Interval | None
    detectable: float | None


def of_this_form(comparisons: Any) -> Any:
    """A run's comparisons but for those of an earlier version, whose entries held all cells of two models."""
    if not isinstance(comparisons, list):
        return comparisons
    return [one for one in comparisons if not (isinstance(one, dict) and "cells" in one)]


class _Partial(Shape):
    samples: int
    expected: int


class Metrics(Shape):
    """metrics.json."""

    scoring: int = 1
    synthetic: bool
    partial: _Partial | None
    roles: dict[str, str]
    cells: list[_Cell]
    effects: list[_Effect]
    comparisons: Annotated[list[_Comparison], BeforeValidator(of_this_form)] = []


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


class Calls(Shape):
    """calls.json."""

    models: list[_ModelCalls]
    invocations: list[_Invocation] = Field(min_length=1)
    wall_s: float


class PlanNotes(Shape):
    """plan.json, of which only the notes are read again."""

    notes: list[str] = []


class Environment(Shape):
    """env.json, which is for people."""

    packages: dict[str, str | None]
    models: dict[str, Any]


class _StoredTaskConfig(Shape):
    stages: list[Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1)]]
    answer: dict[str, Any]


class _StoredModel(Shape):
    params: dict[str, Any] = {}


class _StoredRole(Shape):
    config_name: str
    config: _StoredModel


class _Question(Shape):
    tasks: dict[str, _StoredTaskConfig]
    targets: dict[str, _StoredModel] = {}
    roles: dict[str, _StoredRole] = {}


class StoredConfig(Shape):
    """config.yaml."""

    question: _Question = _Question(tasks={})
    model_labels: dict[str, str] = {}


class _TaskScoring(Shape):
    labels: list[str]
    pair_with: str | None
    variants: list[str]
    expected: dict[str, int]
    epochs: int = 1
    phrasings: bool = False
    judge: str = ""
    scores_against: str | None = None
    choice_labels: list[str] = []


class ScoringSpec(Shape):
    """How samples are scored, in the metadata of their files."""

    synthetic: bool
    models: list[str]
    baseline: str | None = None
    roles: dict[str, str]
    tasks: dict[str, _TaskScoring]
