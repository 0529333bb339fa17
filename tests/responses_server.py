"""A real HTTP server that speaks OpenAI's Responses API, with the faults and counters of `OpenAIServer`."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from faults import APIError, Json, bad_request
from openai_server import CREATED, OpenAIServer, chat_prompt, default_answer

MEMBERS = {"model", "input", "instructions", "max_output_tokens", "temperature", "top_p", "reasoning", "text", "store"}
MEMBERS |= {"service_tier", "prompt_cache_key"}
SUMMARY = "The abstract was compared with the question."


class ResponsesServer(OpenAIServer):
    """The server; `bodies` are what it was sent. An engine that is `modern` takes neither temperature nor top_p."""

    def __init__(self, *, modern: bool = False, **given: Any) -> None:
        super().__init__(**given)
        self.modern = modern
        self.bodies: list[Json] = []

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_post("/v1/responses", self._respond)
        router.add_post("/openai/responses", self._respond)

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        self.bodies.append(body)
        given = body.get("input")
        prompt = given if isinstance(given, str) else chat_prompt(given)
        _, fault = self._admit(request, body, [prompt])
        for name in body:
            if name not in MEMBERS:
                raise _refusal(name, "unknown_parameter", f"Unknown parameter: '{name}'.")
        for name in ("temperature", "top_p"):
            if self.modern and name in body:
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                raise _refusal(name, "unsupported_parameter", message)
        if body.get("store") is not False:
            raise bad_request("This server stores nothing.")
        return await self._reply(request, fault, self._answer(body, prompt), prompt)

    def _answer(self, body: Json, prompt: str) -> Json:
        """One token a word; the instructions are read from the cache."""
        answer = self.answer(prompt) if self.answer else default_answer(prompt, body["model"])
        effort = body.get("reasoning", {}).get("effort", "none")
        thoughts = [] if effort == "none" else SUMMARY.split()
        limit, words = body.get("max_output_tokens") or 10**6, answer.split()
        left = max(0, limit - len(thoughts))
        output: list[Json] = []
        if thoughts:
            shown = [{"type": "summary_text", "text": SUMMARY}] if "summary" in body["reasoning"] else []
            output.append({"type": "reasoning", "id": "rs_1", "summary": shown})
        if left:
            text = {"type": "output_text", "text": answer if len(words) <= left else " ".join(words[:left])}
            output.append({"type": "message", "id": "msg_1", "role": "assistant", "content": [text]})
        cut, cached = len(words) > left, len((body.get("instructions") or "").split())
        return {
            "id": f"resp_{CREATED}",
            "object": "response",
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "error": None,
            "model": f"{body['model']}-2026-01-01",
            "output": output,
            "usage": {
                "input_tokens": len(prompt.split()) + cached,
                "input_tokens_details": {"cached_tokens": cached},
                "output_tokens": len(thoughts[:limit]) + len(words[:left]),
                "output_tokens_details": {"reasoning_tokens": len(thoughts[:limit])},
            },
        }


def _refusal(name: str, code: str, message: str) -> APIError:
    error = bad_request(message, 400, code)
    error.error["param"] = name
    return error
