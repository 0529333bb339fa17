"""Models behind Anthropic's Messages API and OpenAI's Responses API, and ways to ask them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from anthropic_server import AnthropicServer
from openai_models import QUICK
from responses_server import ResponsesServer

from rambla_ray.actors.anthropic import AnthropicMessages
from rambla_ray.actors.openai_responses import OpenAIResponses
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import CallError
from rambla_ray.schema import Request, Response

KEY = "sk-ant-test"


class Claude(AnthropicMessages):
    retry = QUICK


class Responses(OpenAIResponses):
    retry = QUICK


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_BASE", "OPENAI_API_VERSION", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")


def claude_params(**given: Any) -> Any:
    return Claude.Params(**{"engine": "claude-x", **given}).resolved()


def responses_params(**given: Any) -> Any:
    return Responses.Params(**{"engine": "gpt-x", **given}).resolved()


def build(server: AnthropicServer | ResponsesServer, *, rate: Rate | None = None, **given: Any) -> Any:
    """The model behind a server, of the kind that the server speaks."""
    if isinstance(server, AnthropicServer):
        return Claude(claude_params(base_url=server.base_url, **given), Pool(), rate)
    url = server.azure_base if "api_version" in given else server.base_url
    return Responses(responses_params(base_url=url, **given), Pool(), rate)


def ask(model: Any, request: Request | str = "Is it so?") -> Response:
    asked = Request(request) if isinstance(request, str) else request
    answer: Response = asyncio.run(model.generate(asked))
    return answer


def error(model: Any, request: Request | str = "Is it so?") -> CallError:
    with pytest.raises(CallError) as caught:
        ask(model, request)
    return caught.value
