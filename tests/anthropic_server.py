"""A real HTTP server that speaks Anthropic's Messages API, with the faults and counters of `OpenAIServer`.

It refuses what the API refuses: another version, unknown members, turns that do not alternate, a thinking budget that
leaves nothing for the answer, and of an engine that is `modern` (as from Opus 4.7 on) what only older ones take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web
from faults import APIError, Fault, Json, bad_request
from openai_server import CREATED, OpenAIServer, default_answer

TYPES = {401: "authentication_error", 402: "billing_error", 403: "permission_error", 404: "not_found_error"}
TYPES |= {413: "request_too_large", 429: "rate_limit_error", 500: "api_error", 529: "overloaded_error"}
MEMBERS = {"model", "messages", "max_tokens", "system", "temperature", "top_p", "top_k", "stop_sequences", "thinking"}
MEMBERS |= {"output_config", "service_tier", "metadata", "cache_control"}
SAMPLING = ("temperature", "top_p", "top_k")
THOUGHT = "The abstract names the outcome that the question asks for."
ONLY_ADAPTIVE = (
    '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and "output_config.effort" '
    "to control thinking behavior."
)


def error_body(status: int, message: str) -> Json:
    return {
        "type": "error",
        "error": {"type": TYPES.get(status, "invalid_request_error"), "message": message},
        "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy",
    }


class AnthropicServer(OpenAIServer):
    """The server; `bodies` and `headers` are what it was sent, `limits` the headers of every reply."""

    def __init__(self, *, modern: bool = False, limits: Mapping[str, str] | None = None, **given: Any) -> None:
        super().__init__(**{"key": "sk-ant-test", **given})
        self.modern = modern
        self.limits = dict(limits or {})
        self.bodies: list[Json] = []
        self.headers: list[Mapping[str, str]] = []

    async def start(self, port: int = 0) -> None:
        await super().start(port)
        self.base_url = self.azure_base

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_post("/v1/messages", self._message)

    def bears_key(self, request: web.Request) -> bool:
        return request.headers.get("x-api-key") == self.key and "Authorization" not in request.headers

    def error_reply(self, error: APIError) -> web.Response:
        body = error_body(error.status, error.error["message"])
        return web.json_response(body, status=error.status, headers={**self.limits, **error.headers})

    async def _message(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("anthropic-version") != "2023-06-01" or request.content_type != "application/json":
            raise bad_request("anthropic-version: header is required")
        body = await self._body(request)
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        prompt = "\n".join(_texts(body))
        _, fault = self._admit(request, body, [prompt])
        self._check(body)
        fault = fault or Fault("none")
        fault = Fault(**{**vars(fault), "headers": (*self.limits.items(), *fault.headers)})
        return await self._reply(request, fault, self._answer(body, prompt), prompt)

    def _check(self, body: Json) -> None:
        """Raise the error that the API has for a body."""
        for name in body:
            if name not in MEMBERS:
                raise bad_request(f"{name}: Extra inputs are not permitted")
        for name in SAMPLING:
            if self.modern and name in body:
                raise bad_request(f"`{name}` is deprecated for this model.")
        if not 0 <= body.get("temperature", 1) <= 1:
            raise bad_request("temperature: Input should be less than or equal to 1")
        if body.get("system") == "":
            raise bad_request("system: text content blocks must be non-empty")
        kind, budget = (body.get("thinking", {}).get(name) for name in ("type", "budget_tokens"))
        if kind == "enabled" and self.modern:
            raise bad_request(ONLY_ADAPTIVE)
        if kind == "adaptive" and not self.modern:
            raise bad_request("adaptive thinking is not supported on this model")
        if kind == "enabled" and not 0 < budget < body["max_tokens"]:
            raise bad_request("`max_tokens` must be greater than `thinking.budget_tokens`.")
        if kind == "enabled" and body.get("temperature", 1) != 1:
            raise bad_request("`temperature` may only be set to 1 when thinking is enabled.")

    def _answer(self, body: Json, prompt: str) -> Json:
        """One token a word. A system prompt is read from the cache; with `cache_control` the rest is written to it."""
        answer = self.answer(prompt) if self.answer else default_answer(prompt, body["model"])
        thoughts = THOUGHT.split() if body.get("thinking", {}).get("type") in ("enabled", "adaptive") else []
        limit, words = body["max_tokens"], answer.split()
        left = max(0, limit - len(thoughts))
        content: list[Json] = []
        if thoughts:
            content.append({"type": "thinking", "thinking": " ".join(thoughts[:limit]), "signature": "EqQBCg=="})
        if left:
            content.append({"type": "text", "text": answer if len(words) <= left else " ".join(words[:left])})
        read, asked = len(str(body.get("system", "")).split()), len(prompt.split())
        written = asked if "cache_control" in body else 0
        return {
            "id": f"msg_{CREATED}",
            "type": "message",
            "role": "assistant",
            "model": f"{body['model']}-20260101",
            "content": content,
            "stop_reason": "max_tokens" if len(words) > left else "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": asked - written,
                "cache_read_input_tokens": read,
                "cache_creation_input_tokens": written,
                "output_tokens": len(thoughts[:limit]) + len(words[:left]),
                "output_tokens_details": {"thinking_tokens": len(thoughts[:limit])},
            },
        }


def _texts(body: Json) -> list[str]:
    """The texts of the turns, which alternate. Raises APIError."""
    if not isinstance(body.get("max_tokens"), int):
        raise bad_request("max_tokens: Field required")
    turns = body.get("messages") or [{}]
    if turns[0].get("role") != "user":
        raise bad_request('messages: first message must use the "user" role')
    for number, turn in enumerate(turns):
        if turn["role"] != ("user", "assistant")[number % 2]:
            raise bad_request('messages: roles must alternate between "user" and "assistant"')
    return [turn["content"] for turn in turns]
