"""Stage kinds: the steps a task is made of.

A transform is a pure function over all items of a task; a `generate` asks a role. Each declares what it reads and
writes, so that a task whose stages do not fit together is refused when its file is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from rambla_ray.display import SHOWN_CHARACTERS, one_line
from rambla_ray.errors import choose_from
from rambla_ray.schema import Role
from rambla_ray.tasks import prompts
from rambla_ray.tasks.closed import omitted
from rambla_ray.tasks.prompts import SystemPrompt, Template
from rambla_ray.tasks.transforms import AddDistractors, FewShot, Mutate, ShuffleContext, Stage

_PHRASING = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # It becomes a part of sample ids.


def _named_phrasings(templates: dict[str, str]) -> dict[str, str]:
    if len(templates) < 2:
        raise ValueError("phrasings are two at least; write a single one as template")
    if wrong := [name for name in templates if not _PHRASING.fullmatch(name)]:
        shown = one_line(wrong[0], SHOWN_CHARACTERS)
        raise ValueError(f"'{shown}' is no name of a phrasing: use letters, digits, hyphens and underscores")
    return templates


class Generate(Stage):
    """Ask a role: render the template, send it, write what came back into a field.

    With `templates` the task has a variant for each, and each is asked as by a stage of its own; see `phrased`.
    """

    kind: ClassVar[str] = "generate"
    role: Role = Field(description="who answers: target, rephraser or judge")
    template: Template | None = omitted("the prompt; {name} stands for a field")
    templates: Annotated[dict[str, Template], AfterValidator(_named_phrasings)] | None = omitted(
        "the prompt in several phrasings by their names, in place of template; each is a variant of the task"
    )
    output: str = Field("response", alias="writes", description="the field that takes the answer")
    system: SystemPrompt | None = omitted(
        "a system prompt, in place of the model config's own; as it stands, without placeholders"
    )

    @model_validator(mode="after")
    def _is_put_in_one_way(self) -> Self:
        if self.template is None and self.templates is None:
            raise ValueError("it has no prompt: give it a template, or several phrasings as templates: {name: prompt}")
        if self.template is not None and self.templates is not None:
            raise ValueError("template and templates exclude each other; drop one of them, or null it")
        return self

    def reads(self) -> frozenset[str]:
        return frozenset().union(*map(prompts.placeholders, (self.templates or {"": self.template or ""}).values()))

    def writes(self) -> frozenset[str]:
        return frozenset({self.output})

    def variants(self) -> tuple[str, ...]:
        return tuple(self.templates or ("",))

    @cached_property
    def phrasings(self) -> Mapping[str, Self]:
        """By variant, the stage with its template alone; empty where there is but one."""
        return {
            name: self.model_copy(update={"template": template, "templates": None})
            for name, template in (self.templates or {}).items()
        }

    def phrased(self, variant: str) -> Self:
        """What asks the samples of a variant of the task: a stage with one template."""
        return self.phrasings.get(variant, self)

    def render(self, fields: Mapping[str, str]) -> str:
        """The prompt of a stage with one template. Raises KeyError on a missing field."""
        if self.template is None:
            raise ValueError("a stage with several phrasings is asked in one of them")
        return prompts.render(self.template, fields)


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
    _refuse_products([stage for stage in stages if stage.variants() != ("",)])
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


def _refuse_products(varying: Sequence[Stage]) -> None:
    """Raise a ValueError where several stages have variants, unless each has the same single one."""
    if len(varying) > 1 and {stage.variants() for stage in varying} != {varying[0].variants()[:1]}:
        kinds = " and ".join(stage.kind for stage in varying)
        raise ValueError(f"stages {kinds} both have variants; a task can have one such stage")
