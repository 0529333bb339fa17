"""A fake endpoint that refuses parameters, in the words of those that do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web
from faults import APIError
from openai_server import OpenAIServer

Json = dict[str, Any]
Refusal = tuple[int, Json]  # The status and the body of the reply.


class Refused(APIError):
    """A reply of any shape."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(status, None, None, "")
        self.body = body

    def response(self) -> web.Response:
        return web.json_response(self.body, status=self.status)


class PickyServer(OpenAIServer):
    """The server, which looks at each body, and remembers it with its headers, before it does anything else."""

    def __init__(self, refuse: Callable[[Json], Refusal | None] = lambda body: None, **options: Any) -> None:
        super().__init__(**options)
        self.refuse = refuse
        self.bodies: list[Json] = []
        self.headers: list[Mapping[str, str]] = []

    async def _body(self, request: web.Request) -> Json:
        body = await super()._body(request)
        self.bodies.append(body)
        self.headers.append(request.headers)
        if refusal := self.refuse(body):
            raise Refused(*refusal)
        return body


def openai_error(code: str | None, param: str | None, message: str) -> Json:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def gpt5(body: Json) -> Refusal | None:
    """As OpenAI's models that think."""
    if "max_tokens" in body:
        instead = "Use 'max_completion_tokens' instead."
        message = f"Unsupported parameter: 'max_tokens' is not supported with this model. {instead}"
        return 400, openai_error("unsupported_parameter", "max_tokens", message)
    if body.get("temperature", 1) != 1:
        message = (
            f"Unsupported value: 'temperature' does not support {body['temperature']} with this model. Only the "
            "default (1) value is supported."
        )
        return 400, openai_error("unsupported_value", "temperature", message)
    if "top_p" in body:
        message = "Unsupported parameter: 'top_p' is not supported with this model."
        return 400, openai_error("unsupported_parameter", "top_p", message)
    return None


def opus(body: Json) -> Refusal | None:
    """As Anthropic's models from Opus 4.7 on."""
    refused = next((name for name in ("temperature", "top_p") if name in body), None)
    if refused is None:
        return None
    message = f"`{refused}` is deprecated for this model."
    return 400, {"type": "error", "error": {"type": "invalid_request_error", "message": message}}


TAKEN = frozenset({"model", "messages", "prompt", "temperature", "max_tokens", "top_p", "seed", "stop"})


def _unknown(body: Json) -> str | None:
    return next((name for name in body if name not in TAKEN), None)


def vllm(body: Json) -> Refusal | None:
    """As vLLM, which passes on what pydantic says, as Python writes it."""
    if (name := _unknown(body)) is None:
        return None
    fault = {"type": "extra_forbidden", "loc": ("body", name), "msg": "Extra inputs are not permitted", "input": body}
    return 400, {"object": "error", "message": f"[{fault}]", "type": "BadRequestError", "param": None, "code": 400}


def mistral(body: Json) -> Refusal | None:
    """As servers that pass on what pydantic says."""
    if (name := _unknown(body)) is None:
        return None
    fault = {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": 1}
    return 422, {"detail": [fault]}


def google(body: Json) -> Refusal | None:
    """As Gemini's OpenAI-compatible endpoint."""
    if (name := _unknown(body)) is None:
        return None
    message = f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
    return 400, {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}
