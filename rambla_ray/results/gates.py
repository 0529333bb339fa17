"""Gates on a comparison: what must hold of each model against the one that it is compared with."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rambla_ray.config.sections import ALL_TASKS
from rambla_ray.display import SHOWN_CHARACTERS, one_line
from rambla_ray.errors import UserError, choose_from

_GATE = re.compile(
    r"\s*(?:(?P<task>[^<>=:]+):\s*)?(?P<metric>[\w.]+)\s*(?P<sign><=|>=|<|>)\s*(?P<bound>[-+]?[\d.]+(?:e-?\d+)?)\s*"
)
_SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


def _of_difference(read: Callable[[Mapping[str, Any]], float]) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda one: read(one["difference"]) if one["difference"] else None


def _coverage(one: Mapping[str, Any]) -> float | None:
    alone = one["scored_alone"]
    return float((alone["a"] - alone["b"]) / (one["n"] + sum(alone.values()))) if alone else None


METRICS: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "accuracy": _of_difference(lambda difference: float(difference["value"])),
    "accuracy.low": _of_difference(lambda difference: float(difference["ci95"][0])),
    "accuracy.high": _of_difference(lambda difference: float(difference["ci95"][1])),
    "coverage": _coverage,
    "p": lambda one: one["holm_p"],
}


@dataclass(frozen=True)
class Gate:
    """A bound on the change of a metric from the baseline (b) to a model (a), over all tasks or in one of them.

    Args:
        text: as it was written.
        task: `task` or `task variant`; `all` for all tasks together.
        metric: a key of `METRICS`.
        sign: how the metric compares with the bound.
        bound: shares, not points.
    """

    text: str
    task: str
    metric: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """A gate such as `accuracy>=-0.02` or `negation:accuracy.low>-0.05`. Raises UserError."""
        found, shown = _GATE.fullmatch(text), one_line(text, SHOWN_CHARACTERS)
        if found is None:
            raise UserError(f"--gate '{shown}' is no gate; write METRIC>=NUMBER, such as accuracy>=-0.02")
        if found["metric"] not in METRICS:
            raise UserError(
                f"--gate '{shown}': no metric '{found['metric']}'; {choose_from(found['metric'], METRICS)}"
            )
        try:
            bound = float(found["bound"])
        except ValueError:
            raise UserError(f"--gate '{shown}': '{found['bound']}' is no number") from None
        return cls(text.strip(), (found["task"] or ALL_TASKS).strip(), found["metric"], found["sign"], bound)

    def failures(self, comparisons: list[dict[str, Any]]) -> list[str]:
        """Where it does not hold, a line each. Raises UserError where no two were compared in its task."""
        meant = [one for one in comparisons if self.task in (one["task"], f"{one['task']} {one['variant']}")]
        if not meant:
            raise UserError(f"--gate '{one_line(self.text, SHOWN_CHARACTERS)}': no task {self.task} was compared")
        lines = []
        for one in meant:
            value = METRICS[self.metric](one)
            if value is None or not _SIGNS[self.sign](value, self.bound):
                seen = "undefined" if value is None else f"{value:+.4f}"
                where = "" if self.task == ALL_TASKS else f" in {self.task}"
                lines.append(
                    f"gate {self.text} is not met: {self.metric} of {one['a']} against {one['b']}{where} is {seen}"
                )
        return lines
