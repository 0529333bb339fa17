"""The votes of a run's judges, from samples/: by cell, and over the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rambla_ray.results.samples import StoredTask
from rambla_ray.schema import STEP_TYPE, Role
from rambla_ray.scoring.agreement import Ballots
from rambla_ray.scoring.cells import Cell
from rambla_ray.scoring.panel import NO_VOTE, NOT_ASKED, CellPanel, Votes, run_numbers
from rambla_ray.scoring.undefined import explained

_COLUMNS = [f"steps.list.element.{name}" for name in ("role", "model", "vote")]


def judges_of(roles: Mapping[str, str], task_spec: Mapping[str, Any]) -> list[str]:
    """The judges of a task, from its scoring spec, where there are several; else none."""
    judges = roles.get(Role.JUDGE, "").split(",")
    return judges if len(judges) > 1 and task_spec.get("judge") else []


def read_votes(task: StoredTask, judges: Sequence[str], labels: Sequence[str]) -> Votes:
    """What each of several judges voted for, (samples of the file, judges), as the numbers of labels."""
    table = task.read(_COLUMNS)
    steps = table["steps"].combine_chunks() if table is not None else pa.array([], pa.list_(STEP_TYPE))
    flat, rows = steps.flatten(), pc.list_parent_indices(steps).to_numpy()
    judge, label = (
        pc.index_in(flat.field(name), value_set=pa.array(values, pa.string())).fill_null(NO_VOTE).to_numpy()
        for name, values in (("model", judges), ("vote", labels))
    )
    is_vote = pc.equal(flat.field("role"), Role.JUDGE.value).to_numpy(zero_copy_only=False) & (judge >= 0)
    votes = np.full((len(steps), len(judges)), NOT_ASKED, np.int64)
    votes[rows[is_vote], judge[is_vote]] = label[is_vote]
    return votes


class Panels:
    """The panels of a run's cells, of which it keeps no more than the counts of votes.

    Args:
        roles: the run's, from its scoring spec.
    """

    def __init__(self, roles: Mapping[str, str]) -> None:
        self._roles = roles
        self._judges: list[str] = []
        self._ballots: list[Ballots] = []

    def add(self, task: StoredTask, cell: Cell, task_spec: Mapping[str, Any]) -> dict[str, Any]:
        """What metrics.json has of a cell's panel, under its key; empty without one."""
        judges = judges_of(self._roles, task_spec)
        if not judges:
            return {}
        votes = read_votes(task, judges, task_spec["labels"])[cell["row"].to_numpy()]
        panel = CellPanel(cell, votes, judges, task_spec["labels"])
        self._judges = judges
        self._ballots.append(panel.ballots)
        return {"panel": panel.numbers()}

    def of_run(self) -> dict[str, Any]:
        """What metrics.json has of the panels of all cells, under its key; empty without any."""
        return {"panel": explained(run_numbers(self._judges, self._ballots))} if self._ballots else {}
