"""The reader: a model that is asked which choice an answer settles on, where the rules cannot read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from rambla_ray.schema import Role
from rambla_ray.tasks import prompts
from rambla_ray.tasks.stages import Generate

NONE_OF_THEM = ("none of these", "none")  # What the reader replies for an answer that settles on no choice.


def _checked_template(template: str) -> str:
    if prompts.placeholders(template) != {"choices", "answer"}:
        raise ValueError("the reader's prompt has the placeholders {choices} and {answer}, and no others")
    return template


ReaderTemplate = Annotated[str, Field(max_length=prompts.LONGEST), AfterValidator(_checked_template)]


class ReaderStage(Generate):
    """Ask the reader. It stands in no task: a run with a reader asks it about answers that the rules cannot read."""

    kind: ClassVar[str] = "read"
    role: Role = Role.READER
    template: ReaderTemplate
    output: str = Field("reading", alias="writes")


def shown_fields(choices: Sequence[str], answer: str) -> dict[str, str]:
    """What fills the reader's prompt."""
    return {"choices": ", ".join(choices), "answer": answer}


def possible_replies(choices: Sequence[str]) -> tuple[str, ...]:
    """What is looked for in the reader's reply: the choices, and the ways to say that it is none of them."""
    return (*choices, *(words for words in NONE_OF_THEM if words not in choices))
