"""Models behind an OpenAI-compatible endpoint: chat, completion, embeddings; Azure and plain."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from yarl import URL

from rambla_ray.actors.api import echoed_logprobs
from rambla_ray.actors.api.batch_provider import BatchProvider
from rambla_ray.actors.api.http import HttpReply
from rambla_ray.actors.api.http_model import PLACEHOLDER, Form, HTTPModel
from rambla_ray.actors.api.openai_batches import OpenAIBatches
from rambla_ray.actors.api.openai_package import written_request
from rambla_ray.actors.api.openai_params import (
    ChatParams,
    CompletionParams,
    OpenAIEmbeddingsParams,
    OpenAIEndpointParams,
    TextParams,
)
from rambla_ray.actors.api.openai_replies import chat_answer, completion_answer, vectors
from rambla_ray.actors.api.reply_details import details_of
from rambla_ray.actors.api.token_usage import usage_of
from rambla_ray.actors.model import Size
from rambla_ray.config.model import ModelParams
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Message, Request, Response
from rambla_ray.scoring import similarity

if TYPE_CHECKING:
    import openai

ENCODING = "encoding_format"  # The package asks for vectors in base64, a third of the bytes of numbers in JSON.
_SEEDS = 2**63  # An endpoint's seeds are from -_SEEDS to _SEEDS - 1.
# Headers that the package's client sets for itself.
OWN_HEADERS = ("host", "connection", "content-length", "accept-encoding", "x-stainless-")


class OpenAIModel(HTTPModel):
    """What the three APIs share.

    The openai package writes one request, which is caught before it leaves: it knows the URLs, the headers and the
    bodies. Each call then fills its own text into that form, which costs a tenth of a call through the package's
    client.
    """

    params: OpenAIEndpointParams

    def form(self, key: str) -> Form:
        request = written_request(self.params.endpoint, key, self.params.azure_version, self.write)
        headers = {name: value for name, value in request.headers.items() if not name.startswith(OWN_HEADERS)}
        return Form(URL(str(request.url), encoded=True), headers, request.content)

    def batches(self) -> BatchProvider:
        base = self.params.endpoint
        return OpenAIBatches(self.batch_wire(URL(base)), self._url.path.removeprefix(URL(base).path.rstrip("/")))

    def write(self, client: openai.OpenAI) -> None:
        """Let the package write a request with `PLACEHOLDER` as its text."""
        raise NotImplementedError


class OpenAITextModel(OpenAIModel):
    """Chat and completion: both take generation parameters and answer with choices."""

    params: TextParams

    def generation(self) -> dict[str, Any]:
        """The engine and the generation parameters of a request's body."""
        return {"model": self.params.engine, **self.params.generation()}

    def max_answer_tokens(self, request: Request) -> int:
        return request.options.max_tokens or self.params.longest_answer

    def overrides(self, request: Request) -> dict[str, Any]:
        """The members of a body that a request's own options set, and the seed of a draw after the first."""
        own = request.options.overrides()
        if request.epoch and isinstance(seed := self._shared.get("seed"), int):
            own.setdefault("seed", (seed + request.epoch + _SEEDS) % (2 * _SEEDS) - _SEEDS)
        return {self.params.limit_name if name == "max_tokens" else name: value for name, value in own.items()}


class OpenAIChat(OpenAITextModel):
    """`/chat/completions`: the prompt as one user message, as RAmBLA sends it; a system prompt, if any, before it."""

    Params: ClassVar[type[ModelParams]] = ChatParams

    def write(self, client: openai.OpenAI) -> None:
        messages: Any = [turn._asdict() for turn in self._turns(Request(PLACEHOLDER))]
        client.chat.completions.create(messages=messages, **self.generation())

    def _turns(self, request: Request) -> tuple[Message, ...]:
        """The conversation. A system prompt of its own wins over that of a stage, which wins over the config's."""
        turns = request.messages or (Message("user", request.prompt),)
        system = request.system or self.params.system_prompt
        if not system or any(turn.role == "system" for turn in turns):
            return turns
        return (Message("system", system), *turns)

    def own_fields(self, request: Request) -> dict[str, Any]:
        if request.verbatim:
            raise CallError(ErrorKind.BAD_REQUEST, "this model is behind the chat API, which continues no bare text")
        options = self.overrides(request)
        if not (options or request.messages or request.system):
            return {}
        return {**options, "messages": [turn._asdict() for turn in self._turns(request)]}

    def read(self, body: Any, request: Request) -> Response:
        return chat_answer(body)


class OpenAICompletion(OpenAITextModel):
    """`/completions`, which also says how likely choices are where an endpoint echoes what it is sent."""

    Params: ClassVar[type[ModelParams]] = CompletionParams

    def write(self, client: openai.OpenAI) -> None:
        client.completions.create(prompt=PLACEHOLDER, **self.generation())

    def max_answer_tokens(self, request: Request) -> int:
        return len(request.continuations) or super().max_answer_tokens(request)

    def estimate_tokens(self, request: Request) -> int:
        return sum(super(OpenAICompletion, self).estimate_tokens(one) for one in echoed_logprobs.apart(request))

    def size(self, request: Request) -> Size:
        sizes = [super(OpenAICompletion, self).size(one) for one in echoed_logprobs.apart(request)]
        return sum(prompt for prompt, _ in sizes), sum(answer for _, answer in sizes)

    def own_fields(self, request: Request) -> dict[str, Any]:
        if request.messages:
            raise CallError(ErrorKind.BAD_REQUEST, "this model is behind the completion API, which takes no messages")
        if request.continuations:
            return {**echoed_logprobs.MEMBERS, "prompt": echoed_logprobs.asked_texts(request)}
        options = self.overrides(request)
        return {**options, "prompt": request.prompt} if options else {}

    def read_reply(self, request: Request, reply: HttpReply) -> Response:
        try:
            return super().read_reply(request, reply)
        except CallError as error:
            raise echoed_logprobs.about_echo(error) if request.continuations else error from None

    def read(self, body: Any, request: Request) -> Response:
        return echoed_logprobs.choices_answer(body, request) if request.continuations else completion_answer(body)


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
        self._use_body(json.dumps({name: value for name, value in self._shared.items() if name != ENCODING}).encode())

    def texts(self, request: Request) -> bytes:
        texts = [text.replace("\n", " ") for text in (request.prompt, request.pair) if text is not None]
        return json.dumps(texts if len(texts) > 1 else texts[0]).encode()

    def read(self, body: Any, request: Request) -> Response:
        if request.pair is None:
            text = json.dumps(vectors(body, 1)[0])
        else:
            text = repr(similarity.inner_product(*vectors(body, 2)))
        usage = usage_of(body.get("usage"))
        return Response(text=text, prompt_tokens=usage.prompt_tokens, details=details_of(body, usage))
