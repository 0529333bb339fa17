"""Gates on a comparison: what must hold of each model against the one that it is compared with."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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


def _coverage(one: Mapping[str, Any]) -> float:
    alone = one["scored_alone"]
    return float((alone["model"] - alone["baseline"]) / (one["n"] + sum(alone.values())))


METRICS: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "accuracy": _of_difference(lambda difference: float(difference["value"])),
    "accuracy.low": _of_difference(lambda difference: float(difference["ci95"][0])),
    "accuracy.high": _of_difference(lambda difference: float(difference["ci95"][1])),
    "coverage": _coverage,
    "p": lambda one: one["p_holm"],
}


@dataclass(frozen=True)
class Gate:
    """A bound on the change of a metric from the baseline to a model, over all tasks or in one of them.

    Args:
        text: as it was written.
        task: `task` or `task variant`; empty for all tasks together.
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
        return cls(text.strip(), (found["task"] or "").strip(), found["metric"], found["sign"], bound)

    def failures(self, comparisons: list[dict[str, Any]]) -> list[str]:
        """Where it does not hold, a line each. Raises UserError where no two were compared in its task."""
        lines, met = [], False
        for pair in comparisons:
            for one in self._comparisons_of(pair):
                met = True
                value = METRICS[self.metric](one)
                if value is None or not _SIGNS[self.sign](value, self.bound):
                    seen = "undefined" if value is None else f"{value:+.4f}"
                    where = f" in {self.task}" if self.task else ""
                    lines.append(
                        f"gate {self.text} is not met: {self.metric} of {pair['model']} against {pair['baseline']}"
                        f"{where} is {seen}"
                    )
        if not met:
            raise UserError(f"--gate '{one_line(self.text, SHOWN_CHARACTERS)}': no task {self.task} was compared")
        return lines

    def _comparisons_of(self, pair: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        if not self.task:
            return [pair["suite"]]
        return [cell for cell in pair["cells"] if self.task in (cell["task"], f"{cell['task']} {cell['variant']}")]
