"""The rule by which a run ends before all items are asked: `until`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Self

from pydantic import model_validator

from rambla_ray.config.model import ModelConfig
from rambla_ray.errors import UserError
from rambla_ray.tasks.closed import Closed, omitted


class Until(Closed):
    """What the answers must show for a run to end before all items are asked; all that is given must hold."""

    ci_width: float | None = omitted("the width of the 95 % interval of each cell's accuracy, at most", gt=0, lt=1)
    decided: float | None = omitted(
        "the error at which each two targets are compared, or each with the baseline, until one is better",
        gt=0,
        le=0.5,
    )
    equivalent: float | None = omitted(
        "with `decided`: two targets are also settled where they differ by no more than this", gt=0, lt=1
    )

    @model_validator(mode="after")
    def _has_a_rule(self) -> Self:
        if self.equivalent is not None and self.decided is None:
            raise ValueError("`equivalent` needs `decided`: the error at which targets are compared")
        if self.ci_width is None and self.decided is None:
            raise ValueError("it names nothing to wait for; give it ci_width, as in {ci_width: 0.06}, or decided")
        return self

    def check(self, targets: Collection[str], asked: Mapping[str, ModelConfig]) -> None:
        """Refuse a run that cannot be ended so. Raises UserError.

        Args:
            targets: the models under test.
            asked: by what they are called, all models that the run asks.
        """
        if self.decided is not None and len(targets) < 2:
            raise UserError("until: `decided` compares targets, and there is one; name two or more with model=a,b")
        if batched := [name for name, model in asked.items() if model.batch is not None]:
            raise UserError(
                f"until: model {batched[0]} asks in batches of its provider, which take all samples at once; leave "
                "out its batch section, or until"
            )
