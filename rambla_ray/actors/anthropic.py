"""Models behind Anthropic's Messages API."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from rambla_ray.actors.api.anthropic_batches import AnthropicBatches
from rambla_ray.actors.api.anthropic_params import AnthropicParams
from rambla_ray.actors.api.anthropic_replies import messages_answer
from rambla_ray.actors.api.batch_provider import BatchProvider
from rambla_ray.actors.api.conversation import alternating, system_of
from rambla_ray.actors.api.http_model import PLACEHOLDER, Form, HTTPModel
from rambla_ray.config.model import ModelParams
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import GenerationOptions, Message, Request, Response


class AnthropicMessages(HTTPModel):
    """`/v1/messages`: the prompt as one turn of the user's, and the system prompt apart from it."""

    Params: ClassVar[type[ModelParams]] = AnthropicParams
    params: AnthropicParams

    def form(self, key: str) -> Form:
        body = {"messages": [{"role": "user", "content": PLACEHOLDER}], **self.params.members()}
        return Form(self.params.url("messages"), self.params.headers(key), json.dumps(body).encode())

    def batches(self) -> BatchProvider:
        return AnthropicBatches(self.batch_wire(self.params.url("")))

    def max_answer_tokens(self, request: Request) -> int:
        return request.options.max_tokens or self.params.longest_answer

    def own_fields(self, request: Request) -> dict[str, Any]:
        if request.verbatim:
            message = "this model is behind the Messages API, which continues no bare text"
            raise CallError(ErrorKind.BAD_REQUEST, message)
        own = _overrides(request.options)
        if system := request.system or system_of(request.messages):
            own["system"] = system
        if own or request.messages:
            turns = alternating(request.messages or (Message("user", request.prompt),))
            own["messages"] = [turn._asdict() for turn in turns]
        return own

    def holds_answer(self, body: dict[str, Any]) -> bool:
        return isinstance(body.get("content"), list)

    def read(self, body: Any, request: Request) -> Response:
        return messages_answer(body)


def _overrides(options: GenerationOptions) -> dict[str, Any]:
    """What a request asks for, by the API's names. Raises CallError (`bad_request`): the API has no such thing."""
    asked = options.overrides()
    if "seed" in asked:
        raise CallError(ErrorKind.BAD_REQUEST, "this model is behind the Messages API, which takes no seed")
    return {"stop_sequences" if name == "stop" else name: value for name, value in asked.items()}
