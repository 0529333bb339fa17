"""Stage kinds: the steps a task is made of.

A transform is a pure function over all items of a task; a `generate` asks a role. Each declares what it reads and
writes, so that a task whose stages do not fit together is refused when its file is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from rambla_ray.errors import choose_from
from rambla_ray.schema import Role
from rambla_ray.tasks import prompts
from rambla_ray.tasks.closed import omitted
from rambla_ray.tasks.prompts import SystemPrompt, Template
from rambla_ray.tasks.transforms import AddDistractors, FewShot, Mutate, ShuffleContext, Stage, Transform


class Generate(Stage):
    """Ask a role: render the template, send it, write what came back into a field."""

    kind: ClassVar[str] = "generate"
    role: Role = Field(description="who answers: target, rephraser or judge")
    template: Template = Field(description="the prompt; {name} stands for a field")
    output: str = Field("response", alias="writes", description="the field that takes the answer")
    system: SystemPrompt | None = omitted(
        "a system prompt, in place of the model config's own; as it stands, without placeholders"
    )

    def reads(self) -> frozenset[str]:
        return prompts.placeholders(self.template)

    def writes(self) -> frozenset[str]:
        return frozenset({self.output})


class Compare(Generate):
    """Ask whether two texts say the same. A text model gets the template; one that scores pairs gets the pair."""

    kind: ClassVar[str] = "compare"
    left: str = Field(description="the field with the first text: the prediction, or premise")
    right: str = Field(description="the field with the second: the reference, or hypothesis")

    def reads(self) -> frozenset[str]:
        return super().reads() | {self.left, self.right}


STAGES: Mapping[str, type[Stage]] = {
    kind.kind: kind for kind in (ShuffleContext, AddDistractors, Mutate, FewShot, Generate, Compare)
}


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
        ValueError: a stage reads a field that does not exist, a transform stands after a generate, or the roles are
            not in the order in which the stream passes them.
    """
    multiplying = [stage.kind for stage in stages if isinstance(stage, Transform) and len(stage.variants()) > 1]
    if len(multiplying) > 1:
        raise ValueError(f"stages {' and '.join(multiplying)} both have variants; a task can have one such stage")
    order: list[Role] = [role for role in Role if role != Role.READER]
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
