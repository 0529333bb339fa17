"""Models behind an OpenAI-compatible endpoint: chat, completion, embeddings; Azure and plain."""

from __future__ import annotations

import base64
import json
import os
import ssl
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field
from yarl import URL

from rambla_ray.actors.api.engine import BaseAPIModel
from rambla_ray.actors.api.http import HttpReply, Wire, exhausted_s, injected_reply, redact, told_wait_s, visible
from rambla_ray.config.model import KEY_VARIABLE, KeyedParams, ModelParams
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import CallError, ErrorKind, UserError
from rambla_ray.schema import Message, Request, Response, well_formed
from rambla_ray.scoring import similarity

if TYPE_CHECKING:
    import httpx2
    import openai

PLAIN_URL = "https://api.openai.com/v1"
PLACEHOLDER = "<the text of a request>"  # what the package is given, and each call's text replaces
OWN_HEADERS = ("host", "connection", "content-length", "accept-encoding", "x-stainless-")  # of the client, not the API
PING_S = 5.0  # how long an endpoint may take to a sign of life
LONGEST_VECTOR = 100_000


class EndpointParams(KeyedParams):
    """Where an OpenAI-compatible endpoint is and whose key it takes."""

    engine: str = Field(description="the model's name, or Azure's deployment")
    api_type: Literal["azure", "openai"] | None = Field(
        None, description="azure when OPENAI_API_VERSION is set, else openai"
    )
    base_url: str | None = Field(None, description="OPENAI_API_BASE when not given")
    api_version: str | None = Field(None, description="Azure only; OPENAI_API_VERSION when not given")
    api_key_var: str = Field(
        "OPENAI_API_KEY",
        pattern=KEY_VARIABLE,
        description="NAME of the environment variable with the key, in upper case",
    )
    async_calls: bool | None = Field(None, description="accepted as in RAmBLA; calls are always concurrent")

    @property
    def endpoint(self) -> str:
        return str(self.base_url)

    def resolved(self) -> Self:
        """Fill in the endpoint from the environment, as RAmBLA's env file names it; never the key."""
        version = self.api_version or os.environ.get("OPENAI_API_VERSION")
        api_type = self.api_type or ("azure" if version else "openai")
        base_url = self.base_url or os.environ.get("OPENAI_API_BASE")
        if base_url and not base_url.startswith(("http://", "https://")):
            raise UserError(f"engine {self.engine}: base_url {base_url!r} is no URL; it begins with https://")
        if api_type == "azure" and not base_url:
            raise UserError(f"engine {self.engine}: Azure needs an endpoint; set OPENAI_API_BASE or params.base_url")
        if api_type == "azure" and not version:
            raise UserError(
                f"engine {self.engine}: Azure needs an API version; set OPENAI_API_VERSION or params.api_version"
            )
        return self.model_copy(
            update={
                "api_type": api_type,
                "base_url": (base_url or PLAIN_URL).rstrip("/"),
                "api_version": version if api_type == "azure" else None,
            }
        )

    def preflight(self, *, same_machine: bool) -> None:
        super().preflight(same_machine=same_machine)
        if self.async_calls is False:
            print(f"note: engine {self.engine}: async_calls has no effect, calls are concurrent", file=sys.stderr)

    def ping(self) -> str:
        """Its list of models; many that are like the API have none, and answer all the same."""
        import openai

        try:
            key = self.read_key()
            with _client(self, key) as client:
                began = time.monotonic()
                try:
                    client.models.list(timeout=PING_S)
                except openai.APIStatusError as error:
                    if error.status_code in (401, 403):
                        reason = f"turns the key in {self.api_key_var} away (HTTP {error.status_code})"
                        raise UserError(f"{reason}; put a valid one where Ray starts") from None
                    return f"answers (HTTP {error.status_code} to a question for its models)"
                return f"answers, and takes the key in {self.api_key_var} ({time.monotonic() - began:.1f} s)"
        except CallError as error:
            raise UserError(error.message) from None
        except openai.OpenAIError as error:
            cause = error.__cause__ or error
            reason = visible(f"{type(cause).__name__}: {cause}")[:120]
            raise UserError(f"cannot be reached: check params.base_url, and the way there ({reason})") from None


class TextParams(EndpointParams):
    """Generation parameters of the chat and completion APIs."""

    temperature: float = Field(ge=0, le=2, description="0 for the most likely answer")
    max_tokens: int = Field(800, gt=0, description="longest answer, in tokens")
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus sampling")

    @property
    def longest_answer(self) -> int:
        return self.max_tokens


class CompletionParams(TextParams):
    """The completion API, with RAmBLA's default engine."""

    engine: str = Field("text-davinci-003", description="the model's name, or Azure's deployment")


class OpenAIEmbeddingsParams(EndpointParams):
    """The embeddings API, with RAmBLA's default engine."""

    produces = "score"
    embeds = True

    engine: str = Field(
        "text-embedding-ada-002",
        description="the model's name, or Azure's deployment",
    )


class OpenAIModel(BaseAPIModel):
    """What the three APIs share: the form of a request, the identity, and what an error means.

    The openai package writes one request, which is caught before it leaves: it knows the URLs, the headers and the
    bodies. Each call then fills its own text into that form and posts it, which costs a tenth of a call through the
    package's client.
    """

    params: EndpointParams

    def __init__(self, params: EndpointParams, pool: Pool, rate: Rate | None) -> None:
        self.params = params
        super().__init__(params, pool, rate)
        self._key = params.read_key()
        form = _form(params, self._key, self.write)
        self._body: dict[str, Any] = json.loads(form.content)
        before, after = form.content.decode().split(json.dumps(PLACEHOLDER))
        self._before, self._after = before.encode(), after.encode()
        self._url = URL(str(form.url), encoded=True)
        headers = {name: value for name, value in form.headers.items() if not name.startswith(OWN_HEADERS)}
        self._wire = Wire(headers, pool.max_concurrency, _trust)

    def identity(self) -> dict[str, object]:
        return {
            "class": type(self).__name__,
            **self.params.model_dump(exclude={"api_key_var", "async_calls"}),
        }

    def scope(self) -> str:
        return f"{self.params.base_url} {self.params.api_key_var}"

    async def call(self, request: Request) -> Response:
        own = self.own_fields(request)
        body = json.dumps(self._body | own).encode() if own else self._before + self.texts(request) + self._after
        return await self._wire.post(self._url, body, partial(self._answer_in, request))

    async def faulty_call(self, request: Request, fault: str) -> Response:
        return await injected_reply(fault, partial(self._answer_in, request))

    def write(self, client: openai.OpenAI) -> None:
        """Let the package write a request with `PLACEHOLDER` as its text."""
        raise NotImplementedError

    def own_fields(self, request: Request) -> dict[str, Any]:
        """What a request that is more than a prompt puts into the body, in place of what stands there."""
        return {}

    def texts(self, request: Request) -> bytes:
        """The JSON that stands in `PLACEHOLDER`: the prompt as a string."""
        return json.dumps(request.prompt).encode()

    def read(self, body: Any, request: Request) -> Response:
        """The answer in a parsed body."""
        raise NotImplementedError

    def _answer_in(self, request: Request, reply: HttpReply) -> Response:
        if not 200 <= reply.status < 300:
            raise _status_error(reply, lambda words: redact(words, self._key, request.text))
        wait_s = exhausted_s(reply.headers)
        if wait_s:
            self.pause(wait_s)
        try:
            return self.read(json.loads(reply.body), request)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise CallError(
                ErrorKind.GARBAGE, f"the reply is not what the API promises ({type(error).__name__})"
            ) from None


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

    def max_answer_tokens(self, request: Request) -> int:
        return request.options.max_tokens or self.params.max_tokens

    def read(self, body: Any, request: Request) -> Response:
        choice = body["choices"][0]
        text = self.text_of(choice)
        reason = choice.get("finish_reason")
        if not isinstance(text, str):
            if reason != "content_filter":
                raise CallError(ErrorKind.GARBAGE, "the reply has a choice without text")
            text = ""
        if reason == "content_filter" and not text:
            raise CallError(ErrorKind.REFUSED, "the content filter withheld the answer")
        usage = body.get("usage")
        return Response(
            text=well_formed(text),
            finish_reason=visible(reason)[:40] if reason and isinstance(reason, str) else "stop",
            prompt_tokens=_count(usage, "prompt_tokens"),
            completion_tokens=_count(usage, "completion_tokens"),
        )

    def text_of(self, choice: Any) -> Any:
        """The text of a choice."""
        raise NotImplementedError


class OpenAIChat(OpenAITextModel):
    """`/chat/completions`: the prompt as one user message, no system message, as RAmBLA sends it."""

    Params: ClassVar[type[ModelParams]] = TextParams

    def write(self, client: openai.OpenAI) -> None:
        client.chat.completions.create(messages=[{"role": "user", "content": PLACEHOLDER}], **self.options())

    def own_fields(self, request: Request) -> dict[str, Any]:
        if request.verbatim:
            raise CallError(ErrorKind.BAD_REQUEST, "this model is behind the chat API, which continues no bare text")
        messages = request.messages or (Message("user", request.prompt),)
        asked = request.options.overrides()
        return {**asked, "messages": [turn._asdict() for turn in messages]} if asked or request.messages else {}

    def text_of(self, choice: Any) -> Any:
        message = choice["message"]
        if message.get("content") is None and isinstance(message.get("refusal"), str):
            raise CallError(ErrorKind.REFUSED, "the model declined to answer")
        return message["content"]


class OpenAICompletion(OpenAITextModel):
    """`/completions`."""

    Params: ClassVar[type[ModelParams]] = CompletionParams

    def write(self, client: openai.OpenAI) -> None:
        client.completions.create(prompt=PLACEHOLDER, **self.options())

    def own_fields(self, request: Request) -> dict[str, Any]:
        if request.messages:
            raise CallError(ErrorKind.BAD_REQUEST, "this model is behind the completion API, which takes no messages")
        asked = request.options.overrides()
        return {**asked, "prompt": request.prompt} if asked else {}

    def text_of(self, choice: Any) -> Any:
        return choice["text"]


class OpenAIEmbeddings(OpenAIModel):
    """`/embeddings`: line breaks become spaces, as in RAmBLA.

    The response's text is the inner product of a pair's two vectors, asked for in one call; of a prompt alone it is
    the vector as a JSON list.
    """

    Params: ClassVar[type[ModelParams]] = OpenAIEmbeddingsParams

    def estimate_tokens(self, request: Request) -> int:
        return super().estimate_tokens(request) + len(request.pair or "") // 4

    def write(self, client: openai.OpenAI) -> None:
        client.embeddings.create(model=self.params.engine, input=PLACEHOLDER)

    def texts(self, request: Request) -> bytes:
        texts = [text.replace("\n", " ") for text in (request.prompt, request.pair) if text is not None]
        return json.dumps(texts if len(texts) > 1 else texts[0]).encode()

    def read(self, body: Any, request: Request) -> Response:
        vectors = [_vector(item["embedding"]) for item in body["data"]]
        expected = 1 if request.pair is None else 2
        if len(vectors) != expected:
            raise CallError(ErrorKind.GARBAGE, f"the reply has {len(vectors)} vectors for {expected} texts")
        if not all(0 < len(vector) <= LONGEST_VECTOR for vector in vectors):
            raise CallError(ErrorKind.GARBAGE, "the reply has an empty vector, or one that is no embedding")
        text = json.dumps(vectors[0]) if len(vectors) == 1 else repr(similarity.inner_product(*vectors))
        return Response(text=text, prompt_tokens=_count(body.get("usage"), "prompt_tokens"))


def _vector(given: Any) -> list[float]:
    """An embedding as a list of numbers, or as the package asks for it: base64 of little-endian float32."""
    if isinstance(given, str):
        packed = base64.b64decode(given, validate=True)
        return [number for (number,) in struct.iter_unpack("<f", packed)]
    return [float(number) for number in given]


def _count(usage: Any, name: str) -> int:
    """A number of tokens as an endpoint tells it; 0 where that is no such number."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and 0 <= count < 2**31 else 0


def _trust() -> ssl.SSLContext:
    """The certificate authorities that the package trusts."""
    import httpx2

    return httpx2.create_ssl_context()


def _client(params: EndpointParams, key: str, http: httpx2.Client | None = None) -> openai.OpenAI:
    """The openai package's client of an endpoint."""
    import openai

    if params.api_type == "azure":
        return openai.AzureOpenAI(
            azure_endpoint=str(params.base_url),
            api_version=params.api_version,
            api_key=key,
            max_retries=0,
            http_client=http,
        )
    return openai.OpenAI(base_url=params.base_url, api_key=key, max_retries=0, http_client=http)


def _form(params: EndpointParams, key: str, write: Callable[[openai.OpenAI], None]) -> httpx2.Request:
    """The request that the openai package writes, which is not sent."""
    import httpx2
    import openai

    class Catch(httpx2.BaseTransport):
        request: httpx2.Request

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            request.read()
            self.request = request
            raise httpx2.ConnectError("caught")

    catch = Catch()
    client = _client(params, key, openai.DefaultHttpxClient(transport=catch, trust_env=False))
    with client, suppress(openai.APIConnectionError):
        write(client)
    return catch.request


def _status_error(reply: HttpReply, safe: Callable[[str], str]) -> CallError:
    """What an HTTP status means. The message is the endpoint's own, made safe and cut short."""
    status, code, said = reply.status, "", ""
    try:
        body = json.loads(reply.body)
        error = body.get("error", body)
        if isinstance(error, dict):
            code = str(error.get("code") or error.get("type") or "")
            said = str(error.get("message") or "")
        else:
            said = str(error)
    except (ValueError, AttributeError, RecursionError):
        pass  # a proxy's page, mostly
    if 300 <= status < 400:
        said = f"the endpoint redirects to {reply.headers.get('location')}, which is not followed; correct base_url"
    message = safe(f"HTTP {status}{f' {code}' if code else ''}{f': {said}' if said else ''}")
    words = said.lower()
    if status == 413 or "context_length" in code or "context length" in words or "context size" in words:
        return CallError(ErrorKind.TOO_LONG, message)
    if code in ("content_filter", "content_policy_violation"):
        return CallError(ErrorKind.REFUSED, message)
    if code in ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active"):
        return CallError(ErrorKind.QUOTA, message)
    kinds = {401: ErrorKind.AUTH, 403: ErrorKind.AUTH, 404: ErrorKind.NOT_FOUND, 429: ErrorKind.RATE_LIMITED}
    if status in kinds:
        return CallError(kinds[status], message, retry_after_s=told_wait_s(reply.headers))
    if status in (408, 409) or status >= 500:
        return CallError(ErrorKind.SERVER, message, retry_after_s=told_wait_s(reply.headers))
    return CallError(ErrorKind.NOT_FOUND if 300 <= status < 400 else ErrorKind.BAD_REQUEST, message)
