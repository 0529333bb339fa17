"""Models behind an OpenAI-compatible endpoint: chat, completion, embeddings; Azure and plain."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from yarl import URL

from rambla_ray.actors.api.engine import BaseAPIModel
from rambla_ray.actors.api.http import HttpReply, Wire, injected_reply, redact
from rambla_ray.actors.api.openai_errors import error_in, not_json, status_error
from rambla_ray.actors.api.openai_package import trusted_authorities, written_request
from rambla_ray.actors.api.openai_params import CompletionParams, EndpointParams, OpenAIEmbeddingsParams, TextParams
from rambla_ray.actors.api.openai_replies import charge, chat_answer, completion_answer, token_count, vectors
from rambla_ray.actors.api.waits import limit_reset_s
from rambla_ray.config.model import ModelParams
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Message, Request, Response
from rambla_ray.scoring import similarity

if TYPE_CHECKING:
    import openai

PLACEHOLDER = "<the text of a request>"  # Stands in the request that the package writes; a call's text replaces it.
ENCODING = "encoding_format"  # The package asks for vectors in base64, a third of the bytes of numbers in JSON.
# Headers that the package's client sets for itself.
OWN_HEADERS = ("host", "connection", "content-length", "accept-encoding", "x-stainless-")


class OpenAIModel(BaseAPIModel):
    """What the three APIs share: the form of a request, the identity, and the way to the endpoint.

    The openai package writes one request, which is caught before it leaves: it knows the URLs, the headers and the
    bodies. Each call then fills its own text into that form and posts it, which costs a tenth of a call through the
    package's client.
    """

    params: EndpointParams

    def __init__(self, params: EndpointParams, pool: Pool, rate: Rate | None) -> None:
        self.params = params
        super().__init__(params, pool, rate)
        self._key = params.read_key()
        form = written_request(params.endpoint, self._key, params.azure_version, self.write)
        self._use_form(form.content)
        self._url = URL(str(form.url), encoded=True)
        headers = {name: value for name, value in form.headers.items() if not name.startswith(OWN_HEADERS)}
        self._wire = Wire(headers, pool.max_concurrency, trusted_authorities)

    def _use_form(self, form: bytes) -> None:
        """Send bodies of this form from now on, `PLACEHOLDER` standing for the text."""
        self._body: dict[str, Any] = json.loads(form)
        self._before, self._after = form.split(json.dumps(PLACEHOLDER).encode())

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
        """The fields of a body that a request which is more than a prompt sets itself."""
        return {}

    def texts(self, request: Request) -> bytes:
        """The JSON that stands in `PLACEHOLDER`: the prompt as a string."""
        return json.dumps(request.prompt).encode()

    def read(self, body: Any, request: Request) -> Response:
        """The answer in a parsed body."""
        raise NotImplementedError

    def _answer_in(self, request: Request, reply: HttpReply) -> Response:
        def redacted(text: str) -> str:
            return redact(text, self._key, "\n".join(filter(None, (request.text, request.pair))))

        if not 200 <= reply.status < 300:
            raise status_error(reply, redacted)
        wait_s = limit_reset_s(reply.headers)
        if wait_s:
            self.pause(wait_s)
        body: Any = None
        try:
            body = json.loads(reply.body)
            error = error_in(body, reply, redacted)
            if error is None:
                return self.read(body, request)
        except CallError as no_answer:
            error = charge(no_answer, body)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as fault:
            if body is None and isinstance(fault, ValueError | RecursionError):
                raise not_json(reply, redacted) from None
            message = f"the reply is not what the API promises ({type(fault).__name__})"
            error = charge(CallError(ErrorKind.GARBAGE, message), body)
        raise error


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


class OpenAIChat(OpenAITextModel):
    """`/chat/completions`: the prompt as one user message, no system message, as RAmBLA sends it."""

    Params: ClassVar[type[ModelParams]] = TextParams

    def write(self, client: openai.OpenAI) -> None:
        client.chat.completions.create(messages=[{"role": "user", "content": PLACEHOLDER}], **self.options())

    def own_fields(self, request: Request) -> dict[str, Any]:
        if request.verbatim:
            raise CallError(ErrorKind.BAD_REQUEST, "this model is behind the chat API, which continues no bare text")
        messages = request.messages or (Message("user", request.prompt),)
        options = request.options.overrides()
        return {**options, "messages": [turn._asdict() for turn in messages]} if options or request.messages else {}

    def read(self, body: Any, request: Request) -> Response:
        return chat_answer(body)


class OpenAICompletion(OpenAITextModel):
    """`/completions`."""

    Params: ClassVar[type[ModelParams]] = CompletionParams

    def write(self, client: openai.OpenAI) -> None:
        client.completions.create(prompt=PLACEHOLDER, **self.options())

    def own_fields(self, request: Request) -> dict[str, Any]:
        if request.messages:
            raise CallError(ErrorKind.BAD_REQUEST, "this model is behind the completion API, which takes no messages")
        options = request.options.overrides()
        return {**options, "prompt": request.prompt} if options else {}

    def read(self, body: Any, request: Request) -> Response:
        return completion_answer(body)


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

    async def call(self, request: Request) -> Response:
        try:
            return await super().call(request)
        except CallError as error:
            if error.kind is not ErrorKind.BAD_REQUEST or ENCODING not in error.message:
                raise
            self._ask_for_numbers()
            return await super().call(request)

    def _ask_for_numbers(self) -> None:
        """Leave out how vectors are to be encoded, which the endpoint refuses: they come as lists of numbers."""
        self.context.notify(f"{self.params.endpoint} refuses {ENCODING}: vectors are asked for as lists of numbers")
        self._use_form(json.dumps({name: value for name, value in self._body.items() if name != ENCODING}).encode())

    def texts(self, request: Request) -> bytes:
        texts = [text.replace("\n", " ") for text in (request.prompt, request.pair) if text is not None]
        return json.dumps(texts if len(texts) > 1 else texts[0]).encode()

    def read(self, body: Any, request: Request) -> Response:
        if request.pair is None:
            text = json.dumps(vectors(body, 1)[0])
        else:
            text = repr(similarity.inner_product(*vectors(body, 2)))
        return Response(text=text, prompt_tokens=token_count(body.get("usage"), "prompt_tokens"))
