"""Models behind an OpenAI-compatible endpoint: chat, completion, embeddings; Azure and plain."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rambla_ray import similarity
from rambla_ray.actors.base import BaseAPIModel, ModelParams, retry_after_s
from rambla_ray.config import Pool, Rate
from rambla_ray.errors import CallError, ErrorKind, UserError
from rambla_ray.schema import Request, Response

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PLAIN_URL = "https://api.openai.com/v1"


class EndpointParams(ModelParams):
    """Where an OpenAI-compatible endpoint is and whose key it takes."""

    engine: str = Field(description="the model's name, or Azure's deployment")
    api_type: Literal["azure", "openai"] | None = Field(
        None, description="azure when OPENAI_API_VERSION is set, else openai"
    )
    base_url: str | None = Field(None, description="OPENAI_API_BASE when not given")
    api_version: str | None = Field(None, description="Azure only; OPENAI_API_VERSION when not given")
    api_key_var: str = Field(
        "OPENAI_API_KEY",
        pattern=r"^[A-Za-z_]\w*$",
        description="NAME of the environment variable with the key",
    )
    async_calls: bool | None = Field(None, description="accepted as in RAmBLA; calls are always concurrent")


class TextParams(EndpointParams):
    """Generation parameters of the chat and completion APIs."""

    temperature: float = Field(ge=0, le=2, description="0 for the most likely answer")
    max_tokens: int = Field(800, gt=0, description="longest answer, in tokens")
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus sampling")


class ChatParams(TextParams):
    """Chat needs an engine; nothing else differs."""


class CompletionParams(TextParams):
    """The completion API, with RAmBLA's default engine."""

    engine: str = Field("text-davinci-003", description="the model's name, or Azure's deployment")


class EmbeddingsParams(EndpointParams):
    """The embeddings API, with RAmBLA's default engine."""

    engine: str = Field(
        "text-embedding-ada-002",
        description="the model's name, or Azure's deployment",
    )


class OpenAIModel(BaseAPIModel):
    """What the three APIs share: the client, the identity, and what an error means."""

    params: EndpointParams

    def __init__(self, params: EndpointParams, pool: Pool, rate: Rate | None) -> None:
        self.params = params
        super().__init__(params, pool, rate)
        self._client = _client(params, self.deadline_s)

    @classmethod
    def settle(cls, params: EndpointParams) -> EndpointParams:
        """Fill in the endpoint from the environment, as RAmBLA's env file names it; never the key."""
        version = params.api_version or os.environ.get("OPENAI_API_VERSION")
        api_type = params.api_type or ("azure" if version else "openai")
        base_url = params.base_url or os.environ.get("OPENAI_API_BASE")
        if api_type == "azure" and not base_url:
            raise UserError(f"engine {params.engine}: Azure needs an endpoint; set OPENAI_API_BASE or params.base_url")
        if api_type == "azure" and not version:
            raise UserError(
                f"engine {params.engine}: Azure needs an API version; set OPENAI_API_VERSION or params.api_version"
            )
        return params.model_copy(
            update={
                "api_type": api_type,
                "base_url": (base_url or PLAIN_URL).rstrip("/"),
                "api_version": version if api_type == "azure" else None,
            }
        )

    @classmethod
    def preflight(cls, params: EndpointParams, *, same_machine: bool) -> None:
        """The key's variable must be set where calls are made; elsewhere than on this machine it is not looked for."""
        if same_machine and not os.environ.get(params.api_key_var):
            raise UserError(f"needs a key in the environment variable {params.api_key_var}, which is not set")
        if params.async_calls is False:
            print(
                f"note: engine {params.engine}: async_calls has no effect, calls are concurrent",
                file=sys.stderr,
            )

    def identity(self) -> dict[str, object]:
        return {
            "class": type(self).__name__,
            **self.params.model_dump(exclude={"api_key_var", "async_calls"}),
        }

    def scope(self) -> str:
        return f"{self.params.base_url} {self.params.api_key_var}"

    async def call(self, request: Request) -> Response:
        import openai

        try:
            return self.read(await self.send(request))
        except openai.APIStatusError as error:
            raise _status_error(error, self._without_key) from None
        except openai.APITimeoutError:
            raise CallError(ErrorKind.TIMEOUT, "the endpoint did not answer in time") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            reason = self._without_key(f"connection failed: {type(cause).__name__}: {cause}")
            raise CallError(ErrorKind.CONNECTION, reason) from None
        except (openai.OpenAIError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise CallError(
                ErrorKind.GARBAGE, f"the reply is not what the API promises ({type(error).__name__})"
            ) from None

    async def send(self, request: Request) -> Any:
        """One HTTP request; returns the parsed body."""
        raise NotImplementedError

    def read(self, body: Any) -> Response:
        """The answer in a parsed body."""
        raise NotImplementedError

    def _without_key(self, text: str) -> str:
        """`text`, which may be the endpoint's own words, with the key blotted out."""
        key = os.environ.get(self.params.api_key_var)
        return text.replace(key, "***") if key else text


class OpenAITextModel(OpenAIModel):
    """Chat and completion: both take generation parameters and answer with choices."""

    params: TextParams

    def options(self) -> dict[str, Any]:
        """The generation parameters of a request body."""
        return {
            "model": self.params.engine,
            "temperature": self.params.temperature,
            "max_tokens": self.params.max_tokens,
            "top_p": self.params.top_p,
        }

    def max_answer_tokens(self) -> int:
        return self.params.max_tokens

    def read(self, body: Any) -> Response:
        choice = body.choices[0]
        text = self.text_of(choice)
        reason = choice.finish_reason or "stop"
        if not isinstance(text, str):
            if reason != "content_filter":
                raise CallError(ErrorKind.GARBAGE, "the reply has a choice without text")
            text = ""
        if reason == "content_filter" and not text:
            raise CallError(ErrorKind.REFUSED, "the content filter withheld the answer")
        usage = body.usage
        return Response(
            text=text,
            finish_reason=reason,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
        )

    def text_of(self, choice: Any) -> Any:
        """The text of a choice."""
        raise NotImplementedError


class OpenAIChat(OpenAITextModel):
    """`/chat/completions`: the prompt as one user message, no system message, as RAmBLA sends it."""

    Params: ClassVar[type[ModelParams]] = ChatParams

    async def send(self, request: Request) -> Any:
        return await self._client.chat.completions.create(
            messages=[{"role": "user", "content": request.prompt}], **self.options()
        )

    def text_of(self, choice: Any) -> Any:
        return choice.message.content


class OpenAICompletion(OpenAITextModel):
    """`/completions`."""

    Params: ClassVar[type[ModelParams]] = CompletionParams

    async def send(self, request: Request) -> Any:
        return await self._client.completions.create(prompt=request.prompt, **self.options())

    def text_of(self, choice: Any) -> Any:
        return choice.text


class OpenAIEmbeddings(OpenAIModel):
    """`/embeddings`: line breaks become spaces, as in RAmBLA.

    The response's text is the inner product of a pair's two vectors, asked for in one call; of a prompt alone it is
    the vector as a JSON list.
    """

    Params: ClassVar[type[ModelParams]] = EmbeddingsParams
    produces = "score"

    def estimate_tokens(self, request: Request) -> int:
        return super().estimate_tokens(request) + len(request.pair or "") // 4

    async def send(self, request: Request) -> Any:
        texts = [text.replace("\n", " ") for text in (request.prompt, request.pair) if text is not None]
        asked = texts if len(texts) > 1 else texts[0]
        body = await self._client.embeddings.create(model=self.params.engine, input=asked)
        if len(body.data) != len(texts):
            raise CallError(ErrorKind.GARBAGE, f"the reply has {len(body.data)} vectors for {len(texts)} texts")
        return body

    def read(self, body: Any) -> Response:
        vectors = [list(item.embedding) for item in body.data]
        if not all(vectors):
            raise CallError(ErrorKind.GARBAGE, "the reply has an empty vector")
        text = json.dumps(vectors[0]) if len(vectors) == 1 else repr(similarity.inner_product(*vectors))
        return Response(text=text, prompt_tokens=body.usage.prompt_tokens if body.usage else 0)


def _client(params: EndpointParams, timeout_s: float) -> AsyncOpenAI:
    from openai import AsyncAzureOpenAI, AsyncOpenAI

    key = os.environ.get(params.api_key_var, "")
    if not key:
        raise CallError(
            ErrorKind.AUTH, f"the environment variable {params.api_key_var} is not set where the model runs"
        )
    if params.api_type == "azure":
        return AsyncAzureOpenAI(
            azure_endpoint=str(params.base_url),
            api_version=params.api_version,
            api_key=key,
            max_retries=0,
            timeout=timeout_s,
        )
    return AsyncOpenAI(base_url=params.base_url, api_key=key, max_retries=0, timeout=timeout_s)


def _status_error(error: Any, clean: Callable[[str], str]) -> CallError:
    """What an HTTP status means. The message is the endpoint's own, cleaned and cut short."""
    body = error.body if isinstance(error.body, dict) else {}
    code = str(body.get("code") or body.get("type") or "")
    status: int = error.status_code
    said = str(body.get("message") or f"HTTP {status}")
    message = clean(f"HTTP {status} {code}: {said}" if code else f"HTTP {status}: {said}")
    if "context_length" in code or "context length" in said:
        return CallError(ErrorKind.TOO_LONG, message)
    if code in ("content_filter", "content_policy_violation"):
        return CallError(ErrorKind.REFUSED, message)
    if code in ("insufficient_quota", "billing_hard_limit_reached"):
        return CallError(ErrorKind.QUOTA, message)
    kinds = {401: ErrorKind.AUTH, 403: ErrorKind.AUTH, 404: ErrorKind.NOT_FOUND, 429: ErrorKind.RATE_LIMITED}
    if status in kinds:
        return CallError(kinds[status], message, retry_after_s=retry_after_s(error.response.headers))
    if status in (408, 409) or status >= 500:
        return CallError(ErrorKind.SERVER, message, retry_after_s=retry_after_s(error.response.headers))
    return CallError(ErrorKind.BAD_REQUEST, message)
