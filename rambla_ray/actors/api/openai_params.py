"""Params of the models behind OpenAI-compatible endpoints, and what follows from params alone."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from yarl import URL

from rambla_ray.actors.api.base_url import fault_of
from rambla_ray.actors.api.endpoint_params import EndpointParams, Printable, without_last_slash
from rambla_ray.actors.api.extras import JsonObject
from rambla_ray.actors.api.openai_package import list_models
from rambla_ray.actors.api.prompted_params import LimitedParams, PromptedParams
from rambla_ray.config.keyed_params import KEY_DESCRIPTION, KEY_VARIABLE
from rambla_ray.errors import UserError
from rambla_ray.tasks.closed import omitted

PLAIN_URL = "https://api.openai.com/v1"
LONGEST_ANSWER = 10**8  # Tokens.
# The generation parameters, under the names that they have in a request's body.
GENERATION = (
    *("temperature", "max_tokens", "top_p", "max_completion_tokens", "reasoning_effort", "verbosity", "seed", "stop"),
    *("frequency_penalty", "presence_penalty", "service_tier", "response_format"),
)
OF_THINKING = ("max_completion_tokens", "reasoning_effort")  # Params that models take which refuse RAmBLA's defaults.
Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class OpenAIEndpointParams(EndpointParams):
    """Where an OpenAI-compatible endpoint is and whose key it takes."""

    engine: Printable = Field(description="the model's name, or Azure's deployment")
    api_type: Literal["azure", "openai"] | None = Field(
        None, description="azure when OPENAI_API_VERSION is set, else openai"
    )
    base_url: str | None = Field(None, description="OPENAI_API_BASE when not given")
    api_version: Printable | None = Field(None, description="Azure only; OPENAI_API_VERSION when not given")
    api_key_var: str | None = Field("OPENAI_API_KEY", pattern=KEY_VARIABLE, description=KEY_DESCRIPTION)
    async_calls: bool | None = Field(None, description="accepted as in RAmBLA; calls are always concurrent")

    unidentified: ClassVar[frozenset[str]] = EndpointParams.unidentified | {"async_calls"}

    @property
    def azure_version(self) -> str | None:
        """The version of Azure's API; None where the endpoint is not Azure's."""
        return self.api_version if self.api_type == "azure" else None

    def resolved(self) -> Self:
        """Fill in the endpoint from the environment, as RAmBLA's env file names it; never the key."""
        version = self.api_version or _version_of_environment()
        api_type = self.api_type or ("azure" if version else "openai")
        base_url = os.environ.get("OPENAI_API_BASE") or None if self.base_url is None else self.base_url
        name = "OPENAI_API_BASE" if self.base_url is None else ""  # Somebody may have put the key itself there.
        if base_url is not None and (fault := fault_of(base_url, name)):
            raise UserError(f"engine {self.engine}: {fault}")
        if self.api_type == "openai" and self.api_version is not None:
            raise UserError(f"engine {self.engine}: api_version is for api_type azure; drop one of them, or null it")
        if api_type == "azure" and not base_url:
            raise UserError(f"engine {self.engine}: Azure needs an endpoint; set OPENAI_API_BASE or params.base_url")
        if api_type == "azure" and not version:
            raise UserError(
                f"engine {self.engine}: Azure needs an API version; set OPENAI_API_VERSION or params.api_version"
            )
        return self.model_copy(
            update={
                "api_type": api_type,
                "base_url": without_last_slash(base_url or PLAIN_URL),
                "api_version": version if api_type == "azure" else None,
            }
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        note = f"engine {self.engine}: async_calls has no effect, calls are concurrent"
        return (note, *super().remarks) if self.async_calls is False else super().remarks

    @property
    def batch_fault(self) -> str:
        if self.azure_version is None:
            return ""
        way_out = "name its v1 API: api_type: openai, base_url: https://<resource>.openai.azure.com/openai/v1"
        return f"asks Azure by deployment, whose batches are not sent; {way_out}"

    def list_of_batches(self, key: str) -> tuple[URL, dict[str, str]]:
        base, _, query = self.endpoint.partition("?")
        return URL(f"{base}/batches?{query}").update_query(limit=1), {"authorization": f"Bearer {key}"}

    def list_models(self, key: str, proxy: str | None) -> tuple[int, float]:
        is_token = self.api_key_command is not None
        return list_models(self.endpoint, key, self.azure_version, proxy, is_token=is_token)


def _version_of_environment() -> str | None:
    """Azure's API version as RAmBLA's env file names it. Raises UserError: it is none."""
    version = os.environ.get("OPENAI_API_VERSION", "").strip()
    if not version.isprintable() or " " in version:
        raise UserError("OPENAI_API_VERSION is no version: it has spaces, line breaks or control characters in it")
    return version or None


class TextParams(OpenAIEndpointParams, LimitedParams):
    """Generation parameters that the chat and completion APIs share. What is null is not sent."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 for the most likely answer")
    max_tokens: int | None = Field(800, gt=0, le=LONGEST_ANSWER, description="longest answer, in tokens")
    top_p: float | None = Field(0.95, gt=0, le=1, description="nucleus sampling")
    seed: int | None = omitted("seed of the engine's random draws", ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[tuple[Stop, ...], Field(min_length=1, max_length=64)] | None = omitted(
        "the text, or the texts, before which an answer ends"
    )
    frequency_penalty: float | None = omitted("makes words rarer the more often they have come", ge=-2, le=2)
    presence_penalty: float | None = omitted("makes words rarer that have come before", ge=-2, le=2)

    def generation(self) -> dict[str, Any]:
        """The members of a request's body for these params, under the API's names."""
        own = {name: getattr(self, name) for name in GENERATION if name in type(self).model_fields}
        return {name: value for name, value in own.items() if value is not None}


class ChatParams(TextParams, PromptedParams):
    """The chat API: what today's models take besides."""

    max_completion_tokens: int | None = omitted(
        "longest answer, in tokens, with what is thought; max_tokens is not sent then", gt=0, le=LONGEST_ANSWER
    )
    reasoning_effort: Printable | None = omitted("how much is thought: a word of the engine's, such as low")
    verbosity: Printable | None = omitted("how long answers are: a word of the engine's, such as low")
    service_tier: Printable | None = omitted("a word of the endpoint's, such as flex")
    response_format: JsonObject | None = omitted("the form of answers, such as {type: json_object}")

    @model_validator(mode="before")
    @classmethod
    def _without_defaults_that_thinking_models_refuse(cls, value: Any) -> Any:
        """Send `top_p` and `max_tokens` only where they are given, beside what only today's models take."""
        if isinstance(value, dict) and any(value.get(name) is not None for name in OF_THINKING):
            return {"top_p": None, "max_tokens": None, **value}
        return value

    def resolved(self) -> Self:
        params = super().resolved()
        return params.model_copy(update={"max_tokens": None}) if params.max_completion_tokens else params

    @property
    def limit_name(self) -> str:
        is_older = self.max_tokens is not None or (self.max_completion_tokens or self.reasoning_effort) is None
        return "max_tokens" if is_older else "max_completion_tokens"

    def way_out(self, member: str, words: str) -> str | None:
        way_out = super().way_out(member, words)
        if way_out == "set params.max_tokens: null" and "max_completion_tokens" in words:
            return f"set params.max_completion_tokens: {self.max_tokens}"
        return way_out


class CompletionParams(TextParams):
    """The completion API, with RAmBLA's default engine."""

    engine: Printable = Field("text-davinci-003", description="the model's name, or Azure's deployment")

    def for_likelihood(self) -> Self:
        return self


class OpenAIEmbeddingsParams(OpenAIEndpointParams):
    """The embeddings API, with RAmBLA's default engine."""

    produces = "score"
    embeds = True

    engine: Printable = Field(
        "text-embedding-ada-002",
        description="the model's name, or Azure's deployment",
    )
