"""The shapes of what was asked: config.yaml, and in the metadata of samples' files how they are scored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from rambla_ray.results.judge_shapes import CalibrationCounts
from rambla_ray.results.shape import Shape


class _StoredTaskConfig(Shape):
    stages: list[Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1)]]
    answer: dict[str, Any]


class _StoredModel(Shape):
    params: dict[str, Any] = {}


class _StoredPlayer(Shape):
    config_name: str
    config: _StoredModel


class _StoredRole(_StoredPlayer):
    others: list[_StoredPlayer] = []


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


class _UntilSpec(Shape):
    rule: dict[str, float]
    seed: int
    items: int
    of: int
    planned: dict[str, dict[str, int]]


class ScoringSpec(Shape):
    """How samples are scored, in the metadata of their files."""

    synthetic: bool
    models: list[str]
    baseline: str | None = None
    judge_calibration: CalibrationCounts | None = None
    roles: dict[str, str]
    tasks: dict[str, _TaskScoring]
    until: _UntilSpec | None = None
