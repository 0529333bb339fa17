"""Transforms: stages that are pure functions of all items of a task, and ask nobody."""

from __future__ import annotations

import dataclasses
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from rambla_ray.errors import UserError
from rambla_ray.schema import Item
from rambla_ray.tasks import prompts
from rambla_ray.tasks.closed import SEEDS, Closed
from rambla_ray.tasks.mutation import CharacterMutator, TooFewWords, sample_seed
from rambla_ray.tasks.prompts import Template

MOST_CONTEXTS = 10_000  # So many texts are joined at most.
MOST_MUTATIONS = 10**6  # So many words of a text are changed at most.


class Stage(Closed):
    """One step of a task."""

    kind: ClassVar[str]

    @abstractmethod
    def reads(self) -> frozenset[str]:
        """The fields that must exist before this stage."""

    @abstractmethod
    def writes(self) -> frozenset[str]:
        """The fields it sets; one that exists already is kept as `original_<field>`."""

    def variants(self) -> tuple[str, ...]:
        """The values by which this stage multiplies the task; a single empty one when it does not."""
        return ("",)


class Transform(Stage):
    """A pure function of all items of a task."""

    field: str = Field("context", description="the field that is changed")

    def reads(self) -> frozenset[str]:
        return frozenset({self.field})

    def writes(self) -> frozenset[str]:
        return frozenset({self.field})

    @model_validator(mode="after")
    def _each_variant_is_there_once(self) -> Self:
        twice = [variant for variant, count in Counter(self.variants()).items() if count > 1]
        if twice:
            raise ValueError(f"variant {twice[0]} is there twice; leave one out")
        return self

    @abstractmethod
    def apply(self, items: Sequence[Item], seed: int, variant: str) -> list[Item]:
        """The items after this stage, in the same order.

        Args:
            items: all items of the task.
            seed: the run's seed, for stages that set none of their own.
            variant: one of `variants()`; where that is a single empty one, it may be another stage's.

        Raises:
            UserError: too few items for what the stage does.
        """


class ShuffleContext(Transform):
    """Give every item the field of another, by one shuffle of the column (RAmBLA's irrelevant context).

    The draw is NumPy's legacy shuffle, as in the original, and goes by the file's order. An item may keep its own.
    """

    kind: ClassVar[str] = "shuffle_context"
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="of the shuffle; the run's seed when not given")

    def apply(self, items: Sequence[Item], seed: int, variant: str) -> list[Item]:
        values = [item.fields[self.field] for item in items]
        np.random.RandomState(seed if self.seed is None else self.seed).shuffle(values)
        return [item.with_field(self.field, value) for item, value in zip(items, values, strict=True)]


class AddDistractors(Transform):
    """Put the field among those of other items (RAmBLA's distracting context); one variant per position.

    Of `n_contexts` joined texts, the one at the variant's position is the item's own; the others come from the column
    in the file's order, shifted by distinct random amounts, drawn as in the original (the position's is not used).
    """

    kind: ClassVar[str] = "add_distractors"
    n_contexts: int = Field(
        3, ge=2, le=MOST_CONTEXTS, description="how many texts are joined, the right one among them"
    )
    positions: tuple[Annotated[int, Field(ge=0, lt=MOST_CONTEXTS)], ...] = Field(
        (0, 1, 2), min_length=1, description="where the right one stands, from 0"
    )
    separator: str = Field("\n\n", description="between two texts")
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="of the shifts; the run's seed when not given")

    @model_validator(mode="after")
    def _positions_exist(self) -> Self:
        wrong = [position for position in self.positions if not 0 <= position < self.n_contexts]
        if wrong:
            raise ValueError(f"position {wrong[0]} is not among 0 to {self.n_contexts - 1}")
        return self

    def variants(self) -> tuple[str, ...]:
        return tuple(f"position={position}" for position in self.positions)

    def apply(self, items: Sequence[Item], seed: int, variant: str) -> list[Item]:
        count = len(items)
        if count - 1 < self.n_contexts:
            raise UserError(
                f"stage {self.kind}: {self.n_contexts} texts need at least {self.n_contexts + 1} items, there are "
                f"{count}; raise limit or lower n_contexts"
            )
        generator = np.random.RandomState(seed if self.seed is None else self.seed)
        shifts = [int(shift) for shift in generator.choice(range(1, count), self.n_contexts, replace=False)]
        shifts[int(variant.removeprefix("position="))] = 0
        column = [item.fields[self.field] for item in items]
        return [
            item.with_field(self.field, self.separator.join(column[row - shift] for shift in shifts))
            for row, item in enumerate(items)
        ]


class Mutate(Transform):
    """Change a character in a number of the field's words (RAmBLA's spelling robustness); one variant per number.

    Each item's draws are its own generator's: neither order nor other items matter. Too few words are its fault.
    """

    kind: ClassVar[str] = "mutate"
    schedule: tuple[Annotated[int, Field(ge=0, le=MOST_MUTATIONS)], ...] = Field(
        (0, 1, 3, 10, 20, 50), min_length=1, description="words changed, per variant"
    )
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="of the draws; the run's seed when not given")

    def variants(self) -> tuple[str, ...]:
        return tuple(f"n={count}" for count in self.schedule)

    def apply(self, items: Sequence[Item], seed: int, variant: str) -> list[Item]:
        count = int(variant.removeprefix("n="))
        if not count:
            return list(items)
        base = seed if self.seed is None else self.seed
        mutate = CharacterMutator(base)
        mutated = []
        for item in items:
            mutate.restart(sample_seed(base, item.root_id, variant))
            try:
                mutated.append(item.with_field(self.field, mutate(item.fields[self.field], count)))
            except TooFewWords as error:
                mutated.append(dataclasses.replace(item, fault=f"{self.field}: {error}"))
        return mutated


class FewShot(Transform):
    """Put solved items before the question (RAmBLA's few-shot tasks); one variant per order of their answers.

    Examples are other items of the same task whose question differs, drawn without replacement for each label by the
    item's own generator, from items in order of their ids, so that the order of the file changes nothing.
    """

    kind: ClassVar[str] = "few_shot"
    field: str = Field("final_decision", description="the field with an example's answer")
    orders: tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...] = Field(
        min_length=1, description="the examples' answers, per variant"
    )
    template: Template = Field(description="one example; {name} stands for a field")
    differ_in: str = Field("question", description="an example must differ from the item in this field")
    separator: str = Field("\n\n", description="between two examples")
    output: str = Field("examples", alias="writes", description="the field that takes them")
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="of the draws; the run's seed when not given")

    def reads(self) -> frozenset[str]:
        return prompts.placeholders(self.template) | {self.field, self.differ_in}

    def writes(self) -> frozenset[str]:
        return frozenset({self.output})

    def variants(self) -> tuple[str, ...]:
        return tuple(f"order={'-'.join(order)}" for order in self.orders)

    def apply(self, items: Sequence[Item], seed: int, variant: str) -> list[Item]:
        order = dict(zip(self.variants(), self.orders, strict=True))[variant]  # Labels may hold hyphens, too.
        pools: dict[str, list[tuple[str, str]]] = {label: [] for label in order}
        for item in sorted(items, key=lambda item: item.root_id):
            if item.fields[self.field] in pools:
                example = prompts.render(self.template, item.fields)
                pools[item.fields[self.field]].append((item.fields[self.differ_in], example))
        for label, pool in pools.items():
            needed = order.count(label)
            distinct = len({question for question, _ in pool})
            if distinct <= needed:
                raise UserError(
                    f"stage {self.kind}: order {'-'.join(order)} needs more than {needed} items labelled '{label}', "
                    f"there are {distinct}; raise limit"
                )
        base = seed if self.seed is None else self.seed
        return [item.with_field(self.output, self._examples(item, order, pools, base)) for item in items]

    def _examples(
        self, item: Item, order: Sequence[str], pools: Mapping[str, list[tuple[str, str]]], seed: int
    ) -> str:
        generator = random.Random(sample_seed(seed, item.root_id, "-".join(order)))
        own = item.fields[self.differ_in]
        drawn = {}
        for label in dict.fromkeys(order):
            # Examples with the item's own question are dropped, so as many more are drawn: mostly the item itself.
            spare = sum(question == own for question, _ in pools[label])
            sampled = generator.sample(pools[label], order.count(label) + spare)
            drawn[label] = iter([example for question, example in sampled if question != own])
        return self.separator.join(next(drawn[label]) for label in order)
