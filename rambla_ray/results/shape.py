"""What the shapes of stored documents are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """What must be in a document, of just these types."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", defer_build=True)


Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class Estimate(Shape):
    """A number and its interval."""

    value: float
    ci95: Interval | None
