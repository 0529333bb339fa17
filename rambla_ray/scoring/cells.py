"""Cells: the samples of one target, task and variant as columns, which every metric takes.

Samples come as columns, one array for each thing that the metrics need, because a run may hold a million of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rambla_ray.schema import Outcome

CELL_SCHEMA = pa.schema(
    [
        ("root_id", pa.string()),
        ("epoch", pa.int64()),
        *((name, pa.string()) for name in ("target", "label", "answer", "rambla_answer", "outcome")),
        *((name, pa.int64()) for name in ("prompt_tokens", "completion_tokens", "row")),
        *((name, pa.string()) for name in ("error_kind", "scores_against")),
        ("target_answered", pa.bool_()),
    ]
)

Mask = NDArray[np.bool_]  # A truth value for each row.
Rows = NDArray[np.int64]  # The numbers of some rows.


@dataclass(frozen=True, slots=True)
class DrawIds:
    """Which draw of which item each of n samples is: root_ids and epochs."""

    items: pa.Array
    epochs: pa.Array

    def places_in(self, others: DrawIds) -> pa.Array:
        """Where each of these samples stands among others; null where it does not."""
        return pc.index_in(self._names(), value_set=others._names())

    def take(self, rows: Rows) -> DrawIds:
        """Some of them."""
        return DrawIds(self.items.take(pa.array(rows)), self.epochs.take(pa.array(rows)))

    def _names(self) -> pa.Array:
        """A name for each, which no other draw has: what follows the last # is the epoch."""
        return pc.binary_join_element_wise(self.items, self.epochs.fill_null(0).cast(pa.string()), "#")


class Cell:
    """The samples of one cell: columns of n rows, sorted, so that no number depends on the order they came in.

    Args:
        columns: `CELL_SCHEMA`. `label` is the dataset's own, `target` the right answer in this task; tokens are those
            of the model under test, and `target_answered` says whether it answered at all; `row` is the number by
            which the sample's text is read; `error_kind` is that of the last step, empty where that has an answer;
            `scores_against` is the number that a score is measured against, empty where that is the label.

    `scored` and `correct` hold n truth values: whether each sample was scored, and whether it was also right.
    """

    def __init__(self, columns: pa.Table) -> None:
        order = pc.sort_indices(columns, sort_keys=[(name, "ascending") for name in CELL_SCHEMA.names])
        self._columns = columns.take(order).combine_chunks()
        self.scored: Mask = as_mask(pc.equal(self["outcome"], Outcome.SCORED.value))
        self.correct: Mask = self.scored & as_mask(pc.equal(self["answer"], self["target"]))

    def __len__(self) -> int:
        return int(self._columns.num_rows)

    def __getitem__(self, column: str) -> pa.Array:
        return self._columns[column].combine_chunks()

    @property
    def draws(self) -> DrawIds:
        """Which draw of which item each sample is."""
        return DrawIds(self["root_id"], self["epoch"])

    def first_draws(self) -> Cell:
        """The samples of the first epoch, which is all of them where no item is asked again."""
        epochs = self["epoch"].fill_null(0)
        is_first = pc.equal(epochs, pc.min(epochs))
        return self if pc.all(is_first).as_py() else Cell(self._columns.filter(is_first))


def as_mask(values: pa.Array) -> Mask:
    """Truth values as numpy has them; a missing one is false."""
    mask: Mask = values.fill_null(False).to_numpy(zero_copy_only=False)
    return mask
