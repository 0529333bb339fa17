"""Panels of judges: how each of them votes, how far they agree, and on which samples they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from rambla_ray.schema import draw_name
from rambla_ray.scoring.agreement import Alpha, Ballots, krippendorff
from rambla_ray.scoring.cells import Cell
from rambla_ray.scoring.stats import mean
from rambla_ray.scoring.undefined import Undefined

Votes = NDArray[np.int64]  # (samples, judges): the number of a label, NO_VOTE or NOT_ASKED.

NO_VOTE = -1  # The judge's call failed, or no label was read from its answer.
NOT_ASKED = -2  # The target gave nothing to judge.
MOST_SAMPLES = 100  # So many of the samples on which judges disagree are named.
NO_MAJORITY = Undefined("no sample on which this judge voted has a majority")


@dataclass(frozen=True, slots=True)
class CellPanel:
    """The votes of some judges on the samples of a cell.

    Args:
        cell: n samples.
        votes: (n, judges), in the order of the samples.
        judges: their names.
        labels: the possible votes.
    """

    cell: Cell
    votes: Votes
    judges: Sequence[str]
    labels: Sequence[str]

    @property
    def ballots(self) -> Ballots:
        """The votes on each sample, counted."""
        items: NDArray[np.object_] = self.cell["root_id"].to_numpy(zero_copy_only=False)
        return Ballots(self._counts, items)

    @property
    def _counts(self) -> NDArray[np.int64]:
        """How many votes each sample has for each label, (n, labels)."""
        return np.stack([(self.votes == number).sum(axis=1) for number in range(len(self.labels))], axis=1)

    def numbers(self) -> dict[str, Any]:
        """What metrics.json holds of them.

        Of each judge `votes` and `missing`, which add up to the samples that it was asked about, and `agreement`: how
        often its vote is the majority's, over the samples that have one, with its interval over items. `fewer_votes`
        counts samples with a majority of fewer votes than there are judges, `ties` those on which two labels lead,
        `no_votes` those on which nobody voted. `disagreed` names the samples with different votes, null where there
        is none.
        """
        counts, asked = self._counts, self.votes[:, 0] != NOT_ASKED
        most, voted = counts.max(axis=1, initial=0), counts.sum(axis=1)
        tied = (voted > 0) & ((counts == most[:, None]).sum(axis=1) > 1)
        has_majority = (voted > 0) & ~tied
        leader = np.where(has_majority, counts.argmax(axis=1), NO_VOTE)
        split = (counts > 0).sum(axis=1) > 1
        return {
            "n": int(asked.sum()),
            "judges": [
                {
                    "judge": name,
                    "votes": int((own >= 0).sum()),
                    "missing": int((own == NO_VOTE).sum()),
                    "agreement": self._agreement(own, leader),
                }
                for name, own in zip(self.judges, self.votes.T, strict=True)
            ],
            "alpha": alpha_numbers(krippendorff([self.ballots])),
            "ties": int(tied.sum()),
            "no_votes": int((asked & (voted == 0)).sum()),
            "fewer_votes": int((has_majority & (voted < len(self.judges))).sum()),
            "disagreed": {"count": int(split.sum()), "samples": self._named(np.flatnonzero(split))},
        }

    def _agreement(self, own: NDArray[np.int64], leader: NDArray[np.int64]) -> dict[str, Any] | Undefined:
        compared = (own >= 0) & (leader >= 0)
        items = self.cell["root_id"].dictionary_encode().indices.to_numpy()[compared]
        estimate = mean(own[compared] == leader[compared], items)
        return {"value": estimate.value, "ci95": list(estimate.ci95)} if estimate else NO_MAJORITY

    def _named(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """The first of some samples by the names of their draws, each with the vote of each judge."""
        draws = zip(self.cell["root_id"].to_pylist(), pc.fill_null(self.cell["epoch"], 0).to_pylist(), strict=True)
        names = [draw_name(*draw) for draw in draws]
        chosen = sorted(rows.tolist(), key=lambda row: names[row])[:MOST_SAMPLES]
        return [
            {"sample": names[row], "votes": [self.labels[vote] if vote >= 0 else None for vote in self.votes[row]]}
            for row in chosen
        ]


def run_numbers(judges: Sequence[str], cells: Sequence[Ballots]) -> dict[str, Any]:
    """What metrics.json holds of the judges over all cells of a run: alpha, chance being that of votes in a cell."""
    return {"judges": list(judges), "alpha": alpha_numbers(krippendorff(cells))}


def alpha_numbers(alpha: Alpha) -> dict[str, Any]:
    """Alpha as metrics.json holds it; `n` counts the samples with at least two votes."""
    return {"n": alpha.n, "value": alpha.value, "ci95": alpha.ci95}
