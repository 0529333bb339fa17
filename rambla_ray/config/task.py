"""A task config: a dataset, the stages its items pass, and how the answer is read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    model_serializer,
    model_validator,
)

from rambla_ray.config.dataset import normalised
from rambla_ray.config.explain import explain
from rambla_ray.config.sections import Name
from rambla_ray.errors import ErrorKind, choose_from
from rambla_ray.schema import Item, Role, Sample, Step, draw_name
from rambla_ray.tasks.closed import Closed, draws_per_item
from rambla_ray.tasks.stages import STAGES, Generate, check_order, parse_stage
from rambla_ray.tasks.transforms import Stage

Choice = Annotated[str, Field(pattern=r"^\w[\w -]*$")]


class Answer(Closed):
    """How a task's answer is read and scored."""

    choices: tuple[Choice, ...] = Field(min_length=2, description="what may be answered, as plain words")
    target: str = Field(description="the field that holds the right answer")
    labels: dict[Choice, str] | None = Field(
        None, description="the label that each choice stands for, where they are not the same"
    )
    expect: str | None = Field(None, description="the right label for every item, in place of the target's")
    by: Literal["text", "likelihood"] = Field(
        "text",
        exclude_if=lambda by: bool(by == "text"),
        description="text: the model writes, and its answer is read from that; likelihood: it writes nothing, and the "
        "answer is the choice that is likeliest behind the prompt",
    )
    reads: str = Field("response", description="the field the answer is read from")
    scores_against: str | None = Field(
        None,
        description="the field with the number that a model which gives scores, not answers, is measured against as "
        "RAmBLA does; the label when not given",
    )

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As YAML has it: a run whose task does not name `scores_against` keeps the name that it had without it."""
        written: dict[str, Any] = serialize(self)
        if self.scores_against is None:
            del written["scores_against"]
        return written

    @model_validator(mode="after")
    def _choices_and_labels_fit(self) -> Self:
        if any(choice != choice.lower() for choice in self.choices):
            raise ValueError("choices are written in lower case")
        _refuse_twins("choices", self.choices)
        for one, other in itertools.permutations(self.choices, 2):
            if other.startswith(one):
                raise ValueError(f"choices '{one}' and '{other}' overlap; no reader could tell them apart")
        if self.labels is not None and set(self.labels) != set(self.choices):
            raise ValueError(f"labels must name every choice, and nothing else: {', '.join(self.choices)}")
        _refuse_twins("labels", self.label_names)
        if self.expect is not None and self.expect not in self.label_names:
            raise ValueError(f"expect '{self.expect}' is not among the labels {', '.join(self.label_names)}")
        return self

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """The labels that a right answer, and an answer that was read, can have."""
        return tuple(dict.fromkeys(self.labels.values())) if self.labels else self.choices

    @property
    def choice_labels(self) -> list[str]:
        """The label that each choice stands for, in the order of the choices."""
        return [self.label_of(choice) for choice in self.choices]

    def label_of(self, choice: str) -> str:
        """The label that a choice stands for."""
        return self.labels[choice] if self.labels else choice

    def choice_for(self, label: str) -> str:
        """A choice that stands for a label."""
        return next(choice for choice in self.choices if self.label_of(choice) == label)


def _refuse_twins(what: str, names: Sequence[str]) -> None:
    """Raise a ValueError where two names are read as one: labels are compared without regard to case and blanks."""
    for one, other in itertools.combinations(names, 2):
        if one != other and normalised(one) == normalised(other):
            raise ValueError(f"{what} {one!r} and {other!r} differ in case or blanks alone; write them alike")


def _parsed_stages(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("a task needs a list of stages")
    parsed = []
    for number, stage in enumerate(value, start=1):
        try:
            parsed.append(parse_stage(stage))
        except ValidationError as error:
            kind = stage if isinstance(stage, str) else next(iter(stage))
            raise ValueError(f"stage {number}: {explain(error, STAGES[kind], kind)}") from None
        if isinstance(parsed[-1], Generate) and parsed[-1].role == Role.READER:
            raise ValueError(
                f"stage {number}: no stage asks the reader, who reads what the rules cannot in a run with "
                "roles.reader=<model>"
            )
    return parsed


class Turn(NamedTuple):
    """One request of a sample: a stage, and who of those that play its role answers it, from 0."""

    stage: Generate
    seat: int


class TaskConfig(Closed):
    """`conf/task/<name>.yaml`: a dataset, stages, and how the answer is read."""

    dataset: Name = Field(description="a file in conf/dataset")
    pair_with: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][\w.-]*(/[^/\x00-\x1f\x7f]+)?$",
        description="the task, or task/variant, whose answers to the same items these are compared with",
    )
    stages: Annotated[tuple[Stage, ...], BeforeValidator(_parsed_stages)] = Field(description="in order")
    answer: Answer
    epochs: int | None = draws_per_item(
        "how many independent answers to each item are drawn; the run's epochs when not given"
    )
    _judges: int = PrivateAttr(1)

    @model_validator(mode="after")
    def _likelihoods_are_drawn_once(self) -> Self:
        if self.answer.by == "likelihood" and self.draws > 1:
            raise ValueError("epochs: likelihoods are the same each time; leave it out, or ask with answer.by: text")
        return self

    @property
    def draws(self) -> int:
        """How many answers to each item are drawn."""
        return self.epochs or 1

    def with_epochs_of_run(self, count: int | None) -> Self:
        """The task with the run's number of draws, where it has none of its own and its answers are drawn."""
        if self.epochs is not None or self.answer.by == "likelihood":
            return self
        return self.model_copy(update={"epochs": count})

    def with_judges(self, count: int) -> Self:
        """The task in a run with so many judges, each of whom answers the stage of the judge."""
        task = self.model_copy()
        task._judges = count
        return task

    @property
    def judges(self) -> int:
        """How many judges answer: 0 where the task asks none."""
        return self._judges if self.judge else 0

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        """The requests of a sample, in order: step number n of a sample is that of turn number n."""
        return tuple(
            Turn(stage, seat)
            for stage in self.generates
            for seat in range(self._judges if stage.role == Role.JUDGE else 1)
        )

    @field_serializer("stages")
    def _stages_as_yaml(self, stages: tuple[Stage, ...]) -> list[dict[str, Any]]:
        return [{stage.kind: stage.model_dump(mode="json", by_alias=True)} for stage in stages]

    @property
    def variants(self) -> tuple[str, ...]:
        """The values that vary inside this task; a single empty one when nothing does."""
        by_stage = [stage.variants() for stage in self.stages]
        return next((variants for variants in by_stage if variants != ("",)), ("",))

    @property
    def phrased(self) -> Generate | None:
        """The stage that asks in several phrasings, which are the task's variants; None where none does."""
        return next((stage for stage in self.generates if stage.templates), None)

    @cached_property
    def generates(self) -> tuple[Generate, ...]:
        """The stages that ask a role, in order."""
        return tuple(stage for stage in self.stages if isinstance(stage, Generate))

    @property
    def judge(self) -> str:
        """The kind of stage by which a judge answers; empty where none does."""
        return self.generates[-1].kind if self.generates[-1].role == Role.JUDGE else ""

    def choices_asked_by(self, stage: Generate) -> tuple[str, ...]:
        """The choices of which a stage asks how likely they are; none where it asks for a text."""
        return self.answer.choices if self.answer.by == "likelihood" and stage is self.generates[-1] else ()

    def check(self, dataset_fields: frozenset[str]) -> None:
        """Check that each stage and the answer read a field of the dataset or of a stage. Raises ValueError."""
        fields = check_order(self.stages, dataset_fields)
        read = {name: getattr(self.answer, name) for name in ("target", "reads", "scores_against")}
        for key, name in ((f"answer.{key}", name) for key, name in read.items()):
            if name is not None and name not in fields:
                raise ValueError(f"{key} is '{name}', which nothing writes; {choose_from(name, fields)}")
        if self.answer.reads != self.generates[-1].output:
            raise ValueError(
                f"answer.reads is '{self.answer.reads}', but the last generate writes '{self.generates[-1].output}'"
            )
        if self.answer.by == "likelihood":
            _check_asks_for_likelihood(self.generates[-1])
        asked = sum(stage.role == Role.JUDGE for stage in self.generates)
        if asked > 1 and self._judges > 1:
            raise ValueError(f"it asks the judge in {asked} stages, and a panel answers one; choose one roles.judge")


def _check_asks_for_likelihood(last: Generate) -> None:
    """Check that the last stage is one in which the target can be asked how likely choices are. Raises ValueError."""
    if last.role != Role.TARGET or type(last) is not Generate:
        raise ValueError(
            f"answer.by is likelihood, which is the target's, in a last stage of kind generate; here the {last.role} "
            f"is asked last, by {last.kind}"
        )


def sample_of(target: str, name: str, task: TaskConfig, variant: str, item: Item, epoch: int = 0) -> Sample:
    """The sample of an item under one variant of a task, for one target."""
    return Sample(
        sample_id=f"{target}/{name}/{variant or '-'}/{draw_name(item.root_id, epoch)}",
        root_id=item.root_id,
        model=target,
        task=name,
        variant=variant,
        target=task.answer.expect or item.fields[task.answer.target],
        label=item.fields[task.answer.target],
        fields=dict(item.fields),
        steps=[_fault_step(target, item.fault)] if item.fault else [],
        epoch=epoch,
    )


def first_draw(sample: Sample) -> str:
    """The sample_id of the first draw of a sample's item."""
    return sample.sample_id.removesuffix(draw_name("", sample.epoch))


def _fault_step(model: str, fault: str) -> Step:
    """The only step of a sample whose item has a fault, so that no stage can ask it."""
    return Step(
        stage="plan",
        role=Role.TARGET,
        model=model,
        request_id="",
        prompt="",
        error_kind=ErrorKind.BAD_ITEM,
        error=fault,
    )
