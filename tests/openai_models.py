"""Models behind an OpenAI-compatible endpoint, their parameters, and ways to ask them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from openai_server import OpenAIServer
from pause_clock import PauseClockPolicy

from rambla_ray.actors.api.retry import RetryPolicy
from rambla_ray.actors.openai import OpenAIChat, OpenAICompletion, OpenAIEmbeddings, OpenAIModel
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import CallError
from rambla_ray.schema import Request, Response

KEY = "sk-test"
AZURE = {"api_type": "azure", "api_version": "2024-02-01"}
QUICK = RetryPolicy(first_pause_s=0.01, longest_pause_s=0.05)


class Chat(OpenAIChat):
    retry = QUICK


class Completion(OpenAICompletion):
    retry = QUICK


class Embeddings(OpenAIEmbeddings):
    retry = QUICK


class Stubborn(Chat):
    retry = RetryPolicy(attempts=30, first_pause_s=0.001, longest_pause_s=0.01)


KINDS = [Chat, Completion, Embeddings]


@pytest.fixture(autouse=True)
def only_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_BASE", "OPENAI_API_VERSION", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def params(kind: type[OpenAIModel] = Chat, **given: Any) -> Any:
    text = {} if issubclass(kind, OpenAIEmbeddings) else {"temperature": 0.0}
    return kind.Params(**{"engine": "gpt-4", **text, **given}).resolved()


def build(
    where: OpenAIServer | str,
    kind: type[OpenAIModel] = Chat,
    *,
    at_once: int = 64,
    rate: Rate | None = None,
    **given: Any,
) -> Any:
    url = where if isinstance(where, str) else where.azure_base if "api_version" in given else where.base_url
    return kind(params(kind, base_url=url, **given), Pool(max_concurrency=at_once), rate)


def ask(model: OpenAIModel, *prompts: str) -> list[Any]:
    """What became of the prompts, asked together: responses and exceptions."""

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(model.generate(Request(prompt)) for prompt in prompts), return_exceptions=True)

    return asyncio.run(all_at_once())


async def in_turn(model: OpenAIModel, *prompts: str) -> list[Any]:
    return [(await asyncio.gather(model.generate(Request(prompt)), return_exceptions=True))[0] for prompt in prompts]


def ask_in_turn(model: OpenAIModel, *prompts: str) -> list[Any]:
    return asyncio.run(in_turn(model, *prompts))


def answer(model: OpenAIModel, prompt: str) -> Response:
    return asyncio.run(model.generate(Request(prompt)))


def error(model: OpenAIModel, prompt: str = "hello") -> CallError:
    with pytest.raises(CallError) as caught:
        answer(model, prompt)
    return caught.value


@contextmanager
def endpoint(status: int, message: str = "") -> Iterator[tuple[str, list[Any]]]:
    """An endpoint that remembers bodies and replies with one error, `{key}` in its message being the key it got."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            key = self.headers["Authorization"].removeprefix("Bearer ")
            reply = json.dumps({"error": {"message": message.replace("{key}", key), "code": "invalid"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", bodies
        finally:
            server.shutdown()
            thread.join()


class TriesOnce(Chat):
    retry = RetryPolicy(attempts=1)


class CountsPauses(Chat):
    """Gives up by the pauses that it made between calls, which are the same on a busy machine."""

    retry = PauseClockPolicy(first_pause_s=0.01, longest_pause_s=0.05)


IMPATIENT = Rate(give_up_after_s=1)
