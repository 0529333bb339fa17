"""Models behind OpenAI's Responses API; Azure's and the plain one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rambla_ray.actors.api.conversation import system_of, turns_of
from rambla_ray.actors.api.http_model import PLACEHOLDER
from rambla_ray.actors.api.responses_params import ResponsesParams
from rambla_ray.actors.api.responses_replies import responses_answer
from rambla_ray.actors.openai import OpenAIModel
from rambla_ray.config.model import ModelParams
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import GenerationOptions, Request, Response

if TYPE_CHECKING:
    import openai


class OpenAIResponses(OpenAIModel):
    """`/responses`: the prompt as the input, the system prompt as the instructions; nothing is stored there."""

    Params: ClassVar[type[ModelParams]] = ResponsesParams
    params: ResponsesParams

    def write(self, client: openai.OpenAI) -> None:
        client.responses.create(input=PLACEHOLDER, **self.params.members())

    def max_answer_tokens(self, request: Request) -> int:
        return request.options.max_tokens or self.params.longest_answer

    def own_fields(self, request: Request) -> dict[str, Any]:
        if request.verbatim:
            message = "this model is behind the Responses API, which continues no bare text"
            raise CallError(ErrorKind.BAD_REQUEST, message)
        own = _overrides(request.options)
        if system := request.system or system_of(request.messages):
            own["instructions"] = system
        if request.messages:
            own["input"] = [turn._asdict() for turn in turns_of(request.messages)]
        elif own:
            own["input"] = request.prompt
        return own

    def holds_answer(self, body: dict[str, Any]) -> bool:
        return bool(body.get("output")) and not body.get("error")

    def read(self, body: Any, request: Request) -> Response:
        return responses_answer(body)


_NAMES = {"max_tokens": "max_output_tokens", "temperature": "temperature", "top_p": "top_p"}


def _overrides(options: GenerationOptions) -> dict[str, Any]:
    """What a request asks for, by the API's names. Raises CallError (`bad_request`): the API has no such thing."""
    asked = options.overrides()
    if foreign := [name for name in asked if name not in _NAMES]:
        message = f"this model is behind the Responses API, which takes no {foreign[0]}"
        raise CallError(ErrorKind.BAD_REQUEST, message)
    return {_NAMES[name]: value for name, value in asked.items()}
