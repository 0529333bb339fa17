"""A dataset config: where items come from, and which of them are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from rambla_ray.display import counted, one_line
from rambla_ray.errors import choose_from
from rambla_ray.schema import Item
from rambla_ray.tasks.closed import SEEDS, Closed

MOST_ITEMS = 10**12  # A limit is no higher than this.
MOST_LISTED = 5  # A message lists no more values of a field than this.


class DatasetConfig(Closed):
    """`conf/dataset/<name>.yaml`: where items come from and which are kept."""

    format: Literal["pubmedqa", "bioasq", "sick", "mrpc", "table"] = Field(description="the adapter that reads it")
    path: str = Field(description="a hub id (owner/name), or a local, s3:// or gs:// file")
    subset: str | None = Field(None, description="configuration name on the hub")
    split: str = Field("train", description="split on the hub")
    demo: str = Field(pattern=r"^\w[\w.-]*$", description="file of the same layout in rambla_ray/data/demo")
    id_column: str | None = Field(None, description="of a table: the column with each row's id; `id` when not given")
    fields: tuple[str, ...] = Field((), description="of a table: the columns that a task may read")
    keep: dict[str, list[str]] = Field(
        default_factory=dict, description="keep only items whose field has one of these values, in any case"
    )
    balance: str | None = Field(
        None,
        description="a field of `keep`: take as many items of each of its values as the rarest has, the first ones in "
        "the file, value after value in keep's order (RAmBLA's balanced PubMedQA); `limit` then takes equal shares",
    )
    limit: int | None = Field(
        None,
        gt=0,
        le=MOST_ITEMS,
        description="keep the first N items of those that `keep` and `balance` leave, in the file's order",
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=SEEDS,
        description="shuffle before `limit`, whatever the order of the file; the file's order when not given",
    )

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Self:
        if self.format == "table" and not self.fields:
            raise ValueError("format table needs `fields`: the columns that a task may read")
        if self.format != "table" and (self.fields or self.id_column is not None):
            raise ValueError(f"`fields` and `id_column` are for format table; {self.format} has fields of its own")
        if twice := _first_twice(self.fields):
            raise ValueError(f"`fields` names '{twice}' twice")
        if self.balance is not None and not self.keep.get(self.balance):
            raise ValueError(f"`balance: {self.balance}` needs `keep: {{{self.balance}: [...]}}` with the values")
        for column, values in self.keep.items():
            if not values:
                raise ValueError(f"`keep: {{{column}: []}}` keeps nothing; name the values, or leave it out")
        if self.limit is not None and self.limit < len(self._balanced_values):
            raise ValueError(
                f"limit {self.limit} is too small for `balance`: {len(self._balanced_values)} values of "
                f"{self.balance} get equal shares"
            )
        return self

    @property
    def _balanced_values(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(normalised, self.keep[self.balance]))) if self.balance else ()

    def select(self, items: Sequence[Item]) -> Selection:
        """The items that this config chooses: `keep`, then `balance`, then `seed`, then `limit`.

        Raises:
            ValueError: nothing is left, or a value to balance has no items.
        """
        kept, left_out = self._keep(items)
        if not kept:
            raise ValueError("has no items to ask: it is empty")
        if self.balance is not None:
            kept = _balanced(kept, self.balance, self._balanced_values)
        if self.seed is not None:
            by_id = sorted(kept, key=lambda item: item.root_id)
            kept = [by_id[row] for row in np.random.RandomState(self.seed).permutation(len(by_id))]
        if self.limit is not None and self.balance is not None:
            kept = list(_shares(kept, self.balance, self.limit // len(self._balanced_values)))
        return Selection(list(kept[: self.limit]), len(items), left_out)

    def _keep(self, items: Sequence[Item]) -> tuple[Sequence[Item], dict[str, Counter[str]]]:
        """The items that `keep` names, and the others: by field, how many had which value."""
        total, left_out = len(items), {}
        for column, values in self.keep.items():
            wanted = set(map(normalised, values))
            counts = Counter(item.fields.get(column, "") for item in items)
            items = [item for item in items if normalised(item.fields.get(column, "")) in wanted]
            if not items and total:
                known = fields_of(self)
                hint = (
                    f"; {column} is {_most_common(counts)}"
                    if column in known
                    else f"; no field '{column}', {choose_from(column, known)}"
                )
                raise ValueError(f"has no items to ask ({total} before `keep`){hint}")
            left_out[column] = Counter({value: n for value, n in counts.items() if normalised(value) not in wanted})
        return items, left_out


@dataclass(frozen=True)
class Selection:
    """The items of a dataset that are asked.

    Args:
        items: in order.
        read: how many there were.
        left_out: by field of `keep`, how many had which other value.
    """

    items: list[Item]
    read: int
    left_out: Mapping[str, Mapping[str, int]]

    def describe(self) -> str:
        """What `keep` left out, in words; empty when it is nothing."""
        parts = [f"{column} is {_most_common(values)}" for column, values in self.left_out.items() if values]
        count = sum(sum(values.values()) for values in self.left_out.values())
        return f"`keep` leaves out {count} of {counted(self.read, 'item')}: {'; '.join(parts)}" if parts else ""


def _first_twice(names: Sequence[str]) -> str:
    """The first name that stands there twice; empty without any."""
    return next((name for name, count in Counter(names).items() if count > 1), "")


def normalised(label: str) -> str:
    """A label as it is compared with others, without regard to case and blanks."""
    return " ".join(label.split()).lower()


def _most_common(values: Mapping[str, int]) -> str:
    """The values that occur most often, and how often."""
    listed = [f"'{one_line(value, 40)}' in {count}" for value, count in Counter(values).most_common(MOST_LISTED)]
    more = len(values) - MOST_LISTED
    return ", ".join(listed) + (f" and {more} more" if more > 0 else "")


def _balanced(items: Sequence[Item], column: str, values: Sequence[str]) -> list[Item]:
    """Blocks of equal size, one per value in their order: the first items that have it."""
    blocks = {value: [item for item in items if normalised(item.fields[column]) == value] for value in values}
    empty = [value for value, block in blocks.items() if not block]
    if empty:
        raise ValueError(f"has no item whose {column} is '{empty[0]}', so that `balance` would leave none")
    size = min(len(block) for block in blocks.values())
    return [item for block in blocks.values() for item in block[:size]]


def _shares(items: Sequence[Item], column: str, share: int) -> Iterator[Item]:
    """The first `share` items of each value, in the order in which they stand."""
    taken: Counter[str] = Counter()
    for item in items:
        value = normalised(item.fields[column])
        taken[value] += 1
        if taken[value] <= share:
            yield item


FIELDS: Mapping[str, frozenset[str]] = {
    "pubmedqa": frozenset({"question", "long_answer", "final_decision", "context", "labels", "meshes", "pmid"}),
    "bioasq": frozenset({"question", "answer", "context", "label", "id"}),
    "sick": frozenset({"text_1", "text_2", "label", "relatedness_score", "entailment"}),
    "mrpc": frozenset({"text_1", "text_2", "label", "idx"}),
}


def fields_of(config: DatasetConfig) -> frozenset[str]:
    """The fields of a dataset's items, known before it is read."""
    return FIELDS.get(config.format, frozenset(config.fields))
