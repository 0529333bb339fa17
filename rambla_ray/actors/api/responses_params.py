"""Params of the models behind OpenAI's Responses API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from rambla_ray.actors.api.endpoint_params import Printable
from rambla_ray.actors.api.extras import JsonObject
from rambla_ray.actors.api.openai_params import LONGEST_ANSWER, OpenAIEndpointParams
from rambla_ray.actors.api.prompted_params import PromptedParams
from rambla_ray.errors import UserError
from rambla_ray.tasks.closed import omitted

_AT_ONCE = ("background", "store")  # Members of a body by which the answer would be there later, and stay there.


class ResponsesParams(OpenAIEndpointParams, PromptedParams):
    """How the Responses API is to answer. What is null is not sent."""

    max_output_tokens: int | None = omitted("longest answer, in tokens, with what is thought", gt=0, le=LONGEST_ANSWER)
    reasoning_effort: Printable | None = omitted("how much is thought: a word such as low (reasoning.effort)")
    reasoning_summary: Printable | None = omitted("how what is thought is summed up: such as auto (reasoning.summary)")
    verbosity: Printable | None = omitted("how long answers are: a word such as low (text.verbosity)")
    response_format: JsonObject | None = omitted("the form of answers, as the API has it in text.format")
    temperature: float | None = omitted("0 for the most likely answer; reasoning models refuse any", ge=0, le=2)
    top_p: float | None = omitted("nucleus sampling", gt=0, le=1)
    service_tier: Printable | None = omitted("a word of the endpoint's, such as flex")

    renamed: ClassVar[Mapping[str, str]] = {
        "reasoning": "reasoning_effort",
        "reasoning.summary": "reasoning_summary",
        "text": "verbosity",
        "text.format": "response_format",
    }

    def resolved(self) -> Self:
        for name in _AT_ONCE:
            if name in (self.extra_body or {}):
                raise UserError(f"engine {self.engine}: extra_body cannot hold '{name}', which is always false here")
        return super().resolved()

    @property
    def limit_name(self) -> str:
        return "max_output_tokens"

    def members(self) -> dict[str, Any]:
        """The members of a request's body but its input, as arguments of the package's."""
        given = {
            "instructions": self.system,
            "max_output_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "reasoning": _without_nulls({"effort": self.reasoning_effort, "summary": self.reasoning_summary}),
            "text": _without_nulls({"verbosity": self.verbosity, "format": self.response_format}),
            "service_tier": self.service_tier,
        }
        return {"model": self.engine, "store": False, **_without_nulls(given)}


def _without_nulls(members: Mapping[str, Any]) -> dict[str, Any]:
    """Those members that hold something."""
    return {name: value for name, value in members.items() if value not in (None, {})}
