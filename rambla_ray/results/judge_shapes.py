"""The shapes of what a run directory holds of its judges; see `shapes`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rambla_ray.results.shape import Estimate, Interval, Shape


class _Alpha(Shape):
    """Krippendorff's, over `n` samples."""

    n: int
    value: float | None
    ci95: Interval | None


class _PanelJudge(Shape):
    judge: str
    votes: int
    missing: int
    agreement: Estimate | None


class _Disagreed(Shape):
    count: int


class Panel(Shape):
    """The votes of several judges in a cell."""

    n: int
    judges: list[_PanelJudge]
    alpha: _Alpha
    ties: int
    no_votes: int
    fewer_votes: int
    disagreed: _Disagreed


class RunPanel(Shape):
    alpha: _Alpha


class _Share(Shape):
    n: int
    value: float
    ci95: Interval


class Corrected(Shape):
    """An accuracy as it would be if the judge did not err."""

    value: float | None
    ci95: Interval | None
    sensitivity: _Share
    specificity: _Share


class JudgeCalibration(Shape):
    source: str
    judge: str
    synthetic: bool = False
    other_prompt: list[str] = []


class CalibrationCounts(JudgeCalibration):
    labels: dict[str, list[Annotated[list[int], Field(min_length=3, max_length=3)]]]
