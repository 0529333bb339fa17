"""Params of the models behind Anthropic's Messages API, and what follows from params alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field
from yarl import URL

from rambla_ray.actors.api.base_url import fault_of
from rambla_ray.actors.api.endpoint_params import Printable, without_last_slash
from rambla_ray.actors.api.extras import JsonObject, with_headers
from rambla_ray.actors.api.openai_package import get_status
from rambla_ray.actors.api.openai_params import LONGEST_ANSWER, Stop
from rambla_ray.actors.api.prompted_params import PromptedParams
from rambla_ray.config.keyed_params import KEY_DESCRIPTION, KEY_VARIABLE
from rambla_ray.errors import UserError
from rambla_ray.tasks.closed import omitted

PLAIN_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"  # Of the API; there is no later one.
_LARGEST_LIMIT = re.compile(r"\bmax_tokens: \d+ > (\d+)")  # What an engine says of one that is too large.


class AnthropicParams(PromptedParams):
    """Where the API is, whose key it takes, and how it is to answer. What is null is not sent."""

    base_url: str | None = Field(None, description=f"{PLAIN_URL} when not given; with /v1 at its end or without")
    api_key_var: str | None = Field("ANTHROPIC_API_KEY", pattern=KEY_VARIABLE, description=KEY_DESCRIPTION)
    api_version: Printable = Field(VERSION, description="the anthropic-version header")
    max_tokens: int = Field(
        4096, gt=0, le=LONGEST_ANSWER, description="longest answer, in tokens, with what is thought; the API wants one"
    )
    temperature: float | None = omitted("0 for the most likely answer; newer models refuse any", ge=0, le=1)
    top_p: float | None = omitted("nucleus sampling", gt=0, le=1)
    top_k: int | None = omitted("sampling from so many of the likeliest tokens", ge=0, le=10**9)
    stop: Stop | Annotated[tuple[Stop, ...], Field(min_length=1, max_length=64)] | None = omitted(
        "the text, or the texts, before which an answer ends (stop_sequences)"
    )
    thinking_budget: int | None = omitted(
        "tokens for thinking, below max_tokens; newer models refuse one", gt=0, le=LONGEST_ANSWER
    )
    thinking: Printable | JsonObject | None = omitted("adaptive, disabled, or the API's own JSON for how to think")
    effort: Printable | None = omitted("how much is thought and said: a word such as low (output_config.effort)")
    service_tier: Printable | None = omitted("auto or standard_only")

    renamed: ClassVar[Mapping[str, str]] = {"output_config": "effort", "stop_sequences": "stop"}

    def resolved(self) -> Self:
        base_url = PLAIN_URL if self.base_url is None else self.base_url
        if fault := fault_of(base_url):
            raise UserError(f"engine {self.engine}: {fault}")
        if self.thinking_budget is not None and self.thinking is not None:
            raise UserError(f"engine {self.engine}: give thinking_budget or thinking, not both")
        budget = self.thinking_members.get("budget_tokens")
        if isinstance(budget, int) and budget >= self.longest_answer:
            raise UserError(
                f"engine {self.engine}: a thinking budget of {budget} tokens leaves none for the answer; "
                f"raise max_tokens ({self.longest_answer}), which counts both"
            )
        return super().resolved().model_copy(update={"base_url": _without_version(base_url)})

    def url(self, path: str) -> URL:
        """Where a path of the API is."""
        base, mark, query = self.endpoint.partition("?")
        return URL(f"{base}/v1/{path}{mark}{query}")

    @property
    def batch_fault(self) -> str:
        return ""

    def list_of_batches(self, key: str) -> tuple[URL, dict[str, str]]:
        return self.url("messages/batches").update_query(limit=1), self.headers(key)

    def headers(self, key: str) -> dict[str, str]:
        """Those of every request; a token of a command is not the API's own kind of key."""
        bearer = {"authorization": f"Bearer {key}"} if self.api_key_command else {"x-api-key": key} if key else {}
        return {"content-type": "application/json", **bearer, "anthropic-version": self.api_version}

    @property
    def thinking_members(self) -> Mapping[str, Any]:
        """How to think, as the API has it; empty where nothing is said about it."""
        if self.thinking_budget is not None:
            return {"type": "enabled", "budget_tokens": self.thinking_budget}
        return {"type": self.thinking} if isinstance(self.thinking, str) else self.thinking or {}

    def members(self) -> dict[str, Any]:
        """The members of a request's body but its messages."""
        given = {
            "system": self.system,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "stop_sequences": [self.stop] if isinstance(self.stop, str) else self.stop,
            "thinking": self.thinking_members or None,
            "output_config": {"effort": self.effort} if self.effort else None,
            "service_tier": self.service_tier,
        }
        sent = {name: value for name, value in given.items() if value is not None}
        return {"model": self.engine, "max_tokens": self.max_tokens, **sent}

    def way_out(self, member: str, words: str) -> str | None:
        if limit := _LARGEST_LIMIT.search(words):
            return f"set params.max_tokens: {limit[1]}"
        if member.partition(".")[0] == "thinking" and self.thinking_members and "thinking.type.adaptive" in words:
            instead = "set params.thinking: adaptive"
            return f"{instead} in place of params.thinking_budget" if self.thinking_budget is not None else instead
        if member == "thinking" and self.thinking_budget is not None:
            return "set params.thinking_budget: null"
        return super().way_out(member, words)

    def list_models(self, key: str, proxy: str | None) -> tuple[int, float]:
        return get_status(str(self.url("models")), with_headers(self.headers(key), self.extra_headers), proxy)


def _without_version(base_url: str) -> str:
    """A URL whose path ends neither in a slash nor in the API's `/v1`; its query stays."""
    path, mark, query = without_last_slash(base_url).partition("?")
    return without_last_slash(f"{path.removesuffix('/v1')}{mark}{query}")
