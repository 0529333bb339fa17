"""Stage kinds: the steps a task is made of.

A transform is a pure function over all items of a task; a `generate` asks a role. Each declares what it reads and
writes, so that a task whose stages do not fit together is refused when its file is loaded.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from rambla_ray import prompts
from rambla_ray.errors import UserError, choose_from
from rambla_ray.schema import Role


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One dataset item: its id, the same in every task, and its columns as text."""

    root_id: str
    fields: dict[str, str]

    def with_field(self, name: str, value: str) -> Item:
        """A copy with `name` set; see `overwrite`."""
        fields = dict(self.fields)
        overwrite(fields, name, value)
        return dataclasses.replace(self, fields=fields)


def overwrite(fields: dict[str, str], name: str, value: str) -> None:
    """Set `fields[name]`; what stood there first is kept as `original_<name>`."""
    if name in fields:
        fields.setdefault(f"original_{name}", fields[name])
    fields[name] = value


def _checked_template(template: str) -> str:
    prompts.placeholders(template)
    return template


Template = Annotated[str, AfterValidator(_checked_template)]


class Stage(BaseModel):
    """One step of a task."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: ClassVar[str]

    @abstractmethod
    def reads(self) -> frozenset[str]:
        """The fields that must exist before this stage."""

    @abstractmethod
    def writes(self) -> frozenset[str]:
        """The fields it sets; one that exists already is kept as `original_<field>`."""


class Transform(Stage):
    """A pure function of all items of a task."""

    field: str = Field("context", description="the field that is changed")

    def reads(self) -> frozenset[str]:
        return frozenset({self.field})

    def writes(self) -> frozenset[str]:
        return frozenset({self.field})

    @abstractmethod
    def apply(self, items: Sequence[Item], seed: int) -> list[Item]:
        """The items after this stage, in the same order.

        Args:
            items: all items of the task.
            seed: the run's seed, for stages that set none of their own.

        Raises:
            UserError: too few items for what the stage does.
        """


class ShuffleContext(Transform):
    """Give every item the field of another, by one shuffle of the column (RAmBLA's irrelevant context).

    The draw is NumPy's legacy shuffle, as in the original, from a generator of its own. An item may keep its own.
    """

    kind: ClassVar[str] = "shuffle_context"
    seed: int | None = Field(None, description="of the shuffle; the run's seed when not given")

    def apply(self, items: Sequence[Item], seed: int) -> list[Item]:
        values = [item.fields[self.field] for item in items]
        np.random.RandomState(seed if self.seed is None else self.seed).shuffle(values)
        return [item.with_field(self.field, value) for item, value in zip(items, values, strict=True)]


class AddDistractors(Transform):
    """Hide the field among those of other items (RAmBLA's distracting context).

    Of `n_contexts` joined texts, the one at `position` is the item's own; the others come from the column shifted by
    distinct random amounts, drawn as in the original (the draw for `position` is made and not used).
    """

    kind: ClassVar[str] = "add_distractors"
    n_contexts: int = Field(3, ge=2, description="how many texts are joined, the right one among them")
    position: int = Field(1, ge=0, description="where the right one stands, counted from 0")
    separator: str = Field("\n\n", description="between two texts")
    seed: int | None = Field(None, description="of the shifts; the run's seed when not given")

    @model_validator(mode="after")
    def _position_is_one_of_them(self) -> Self:
        if self.position >= self.n_contexts:
            raise ValueError(f"position {self.position} is not below n_contexts {self.n_contexts}")
        return self

    def apply(self, items: Sequence[Item], seed: int) -> list[Item]:
        count = len(items)
        if count - 1 < self.n_contexts:
            raise UserError(
                f"stage {self.kind}: {self.n_contexts} texts need at least {self.n_contexts + 1} items, there are "
                f"{count}; raise limit or lower n_contexts"
            )
        generator = np.random.RandomState(seed if self.seed is None else self.seed)
        shifts = [int(shift) for shift in generator.choice(range(1, count), self.n_contexts, replace=False)]
        shifts[self.position] = 0
        column = [item.fields[self.field] for item in items]
        return [
            item.with_field(self.field, self.separator.join(column[row - shift] for shift in shifts))
            for row, item in enumerate(items)
        ]


class Generate(Stage):
    """Ask a role: render the template, send it, write what came back into a field."""

    kind: ClassVar[str] = "generate"
    role: Role = Field(description="who answers: target, rephraser or judge")
    template: Template = Field(description="the prompt; {name} stands for a field")
    output: str = Field("response", alias="writes", description="the field that takes the answer")

    def reads(self) -> frozenset[str]:
        return prompts.placeholders(self.template)

    def writes(self) -> frozenset[str]:
        return frozenset({self.output})


STAGES: Mapping[str, type[Stage]] = {kind.kind: kind for kind in (ShuffleContext, AddDistractors, Generate)}


def parse_stage(value: Any) -> Stage:
    """A stage from its YAML form, `kind` or `{kind: {...}}`.

    Raises:
        ValueError: not of that form, or an unknown kind.
        pydantic.ValidationError: the stage's own values are wrong.
    """
    if isinstance(value, Stage):
        return value
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ValueError(f"a stage is written as 'kind' or 'kind: {{...}}', not {value!r}")
    ((kind, body),) = value.items()
    if kind not in STAGES:
        raise ValueError(f"no stage kind '{kind}'; {choose_from(str(kind), STAGES)}")
    return STAGES[kind].model_validate(body or {})


def check_order(stages: Sequence[Stage], fields: frozenset[str]) -> frozenset[str]:
    """The fields that exist after all stages.

    Raises:
        ValueError: a stage reads what nobody wrote, a transform stands after a generate, or the roles are not in
            the order in which the stream passes them.
    """
    order = list(Role)
    reached = -1
    for number, stage in enumerate(stages, start=1):
        missing = sorted(stage.reads() - fields)
        if missing:
            raise ValueError(
                f"stage {number} ({stage.kind}) reads '{missing[0]}', which nothing before it writes; "
                f"{choose_from(missing[0], fields)}"
            )
        if isinstance(stage, Generate):
            if order.index(stage.role) < reached:
                raise ValueError(
                    f"stage {number} asks the {stage.role} after the {order[reached]}; the order is "
                    f"{' → '.join(order)}"
                )
            reached = order.index(stage.role)
        elif reached >= 0:
            raise ValueError(f"stage {number} ({stage.kind}) stands after a generate; transforms come first")
        fields |= stage.writes() | {f"original_{name}" for name in stage.writes() & fields}
    if reached < 0:
        raise ValueError("no generate stage: nobody is asked")
    return fields
