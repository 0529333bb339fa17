"""Params of the models behind OpenAI-compatible endpoints, and what follows from params alone."""

from __future__ import annotations

import os
from typing import ClassVar, Literal, Self

from pydantic import Field
from yarl import URL

from rambla_ray.actors.api.base_url import fault_of
from rambla_ray.actors.api.endpoint_params import EndpointParams, Printable, without_last_slash
from rambla_ray.actors.api.openai_package import list_models
from rambla_ray.actors.api.proxy import proxy_of
from rambla_ray.config.model import KEY_VARIABLE
from rambla_ray.display import folded
from rambla_ray.errors import CallError, UserError

PLAIN_URL = "https://api.openai.com/v1"


class OpenAIEndpointParams(EndpointParams):
    """Where an OpenAI-compatible endpoint is and whose key it takes."""

    engine: Printable = Field(description="the model's name, or Azure's deployment")
    api_type: Literal["azure", "openai"] | None = Field(
        None, description="azure when OPENAI_API_VERSION is set, else openai"
    )
    base_url: str | None = Field(None, description="OPENAI_API_BASE when not given")
    api_version: Printable | None = Field(None, description="Azure only; OPENAI_API_VERSION when not given")
    api_key_var: str | None = Field(
        "OPENAI_API_KEY",
        pattern=KEY_VARIABLE,
        description="NAME of the environment variable with the key, in upper case; null where none is needed",
    )
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
        return (note,) if self.async_calls is False else ()

    def ping(self) -> str:
        """Ask for its list of models; many that are like the API have none, and answer all the same."""
        try:
            proxy = proxy_of(URL(self.endpoint))
            status, seconds = list_models(
                self.endpoint,
                self.read_key(),
                self.azure_version,
                str(proxy) if proxy else None,
                is_token=self.api_key_command is not None,
            )
        except CallError as error:
            raise UserError(error.message) from None
        except ConnectionError as error:
            reason = folded(str(error), 120)
            raise UserError(f"cannot be reached: check params.base_url, and the way there ({reason})") from None
        if status in (401, 403):
            reason = f"turns {self.key_source} away (HTTP {status})"
            raise UserError(f"{reason}; put a valid one where Ray starts")
        if status != 200:
            return f"answers (HTTP {status} to a question for its models)"
        return f"answers, and takes {self.key_source} ({seconds:.1f} s)"


def _version_of_environment() -> str | None:
    """Azure's API version as RAmBLA's env file names it. Raises UserError: it is none."""
    version = os.environ.get("OPENAI_API_VERSION", "").strip()
    if not version.isprintable() or " " in version:
        raise UserError("OPENAI_API_VERSION is no version: it has spaces, line breaks or control characters in it")
    return version or None


class TextParams(OpenAIEndpointParams):
    """Generation parameters of the chat and completion APIs."""

    temperature: float = Field(ge=0, le=2, description="0 for the most likely answer")
    max_tokens: int = Field(800, gt=0, le=10**8, description="longest answer, in tokens")
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus sampling")

    @property
    def longest_answer(self) -> int:
        return self.max_tokens


class CompletionParams(TextParams):
    """The completion API, with RAmBLA's default engine."""

    engine: Printable = Field("text-davinci-003", description="the model's name, or Azure's deployment")


class OpenAIEmbeddingsParams(OpenAIEndpointParams):
    """The embeddings API, with RAmBLA's default engine."""

    produces = "score"
    embeds = True

    engine: Printable = Field(
        "text-embedding-ada-002",
        description="the model's name, or Azure's deployment",
    )
