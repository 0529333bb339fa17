"""What metrics.json says of the steps of a cell: which their limit cut, who served them, what reasoning took."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rambla_ray.results.served import NAMED, listed
from rambla_ray.schema import Role

CUT = "length"  # The finish reason of an answer that is as long as its limit.
STEP_NAMES = (
    "role",
    "model",
    "error_kind",
    "finish_reason",
    "reasoning_tokens",
    *NAMED,
)  # What is looked at of a step.


@dataclass(slots=True)
class StepCounts:
    """Counts of the steps of one cell.

    `cut` are samples of which any answer is cut; `cut_by_role` says in which roles. `reasoning_tokens` are the
    target's. `served_by` has an entry for each role and what its replies named; of several judges for each of them.
    """

    cut: int = 0
    cut_by_role: Counter[str] = field(default_factory=Counter)
    reasoning_tokens: int = 0
    served_by: list[dict[str, Any]] = field(default_factory=list)

    def added_to(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """The numbers of a cell, with these among them; what is usual is left out."""
        tokens = {"reasoning": self.reasoning_tokens} if self.reasoning_tokens else {}
        by_role = dict(sorted(self.cut_by_role.items()))
        return {
            **numbers,
            "cut": {"count": self.cut, "share": self.cut / numbers["n"]},
            **({"cut_by_role": by_role} if by_role.keys() - {Role.TARGET.value} else {}),
            "tokens": {**numbers["tokens"], **tokens},
            **({"served_by": self.served_by} if self.served_by else {}),
        }


def count_steps(variants: pa.ChunkedArray, steps: pa.ListArray) -> Mapping[str, StepCounts]:
    """The counts of each variant.

    Args:
        variants: of each sample its variant.
        steps: of each sample the steps of its task's own stages, which have `STEP_NAMES`.
    """
    counts: defaultdict[str, StepCounts] = defaultdict(StepCounts)
    flat, rows = steps.flatten(), pc.list_parent_indices(steps)
    columns = {name: flat.field(name) for name in STEP_NAMES}
    table = pa.table({"variant": variants.take(rows), "row": rows, **columns})
    answers = table.filter(pc.equal(columns["error_kind"], ""))
    _count_cut(answers.filter(pc.equal(answers["finish_reason"], CUT)), counts)
    if pc.max(answers["reasoning_tokens"]).as_py():
        of_target = answers.filter(pc.equal(answers["role"], Role.TARGET.value))
        for sums in of_target.group_by("variant").aggregate([("reasoning_tokens", "sum")]).to_pylist():
            counts[sums["variant"]].reasoning_tokens = sums["reasoning_tokens_sum"]
    if any(pc.any(pc.not_equal(answers[name], "")).as_py() for name in NAMED):
        _count_served(answers, counts)
    return counts


def _count_cut(cut: pa.Table, counts: defaultdict[str, StepCounts]) -> None:
    """Count the samples that steps which are cut belong to, all together and by role."""
    for variant in cut.group_by(["variant", "row"]).aggregate([])["variant"].to_pylist():
        counts[variant].cut += 1
    for step in cut.group_by(["variant", "row", "role"]).aggregate([]).to_pylist():
        counts[step["variant"]].cut_by_role[step["role"]] += 1


def of_several_judges(roles: pa.Array, models: pa.Array) -> pa.Array:
    """Of n steps, which are those of judges, where there are several; none where there is one."""
    is_judge = pc.equal(roles, Role.JUDGE.value)
    has_several = pc.count_distinct(models.filter(is_judge)).as_py() > 1
    return is_judge if has_several else pa.repeat(False, len(roles))


def _count_served(answers: pa.Table, counts: defaultdict[str, StepCounts]) -> None:
    """Count answers by who served them."""
    of_panel = of_several_judges(answers["role"], answers["model"])
    answers = answers.append_column("config", pc.if_else(of_panel, answers["model"], ""))
    found = answers.group_by(["variant", "role", "config", *NAMED]).aggregate([([], "count_all")]).to_pylist()
    by_role: defaultdict[tuple[str, str, str], list[tuple[tuple[str, ...], int]]] = defaultdict(list)
    for group in found:
        names = tuple(group[name] for name in NAMED)
        by_role[group["variant"], group["role"], group["config"]].append((names, group["count_all"]))
    for (variant, role, config), served in sorted(by_role.items()):
        counts[variant].served_by += listed(served, role=role, **({"config": config} if config else {}))
