"""The mock: a deterministic model that needs nothing, to try the pipeline and to test it."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import re
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from rambla_ray.actors.api.engine import BaseAPIModel
from rambla_ray.actors.model import Emit
from rambla_ray.config.model import ModelParams
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import GenerationOptions, ReplyDetails, Request, Response

_WORDINGS = (
    "{0}",
    "{1}",
    "{1}.",
    "**{1}**",
    "The answer is {0}.",
    "Answer: {1}",
    "{1}, as the abstract shows.",
    "Based on the abstract, the answer is {0}.",
)


class MockParams(ModelParams):
    """How the mock answers."""

    unidentified = frozenset({"latency_s", "word_s"})

    behaviour: Literal["oracle", "constant", "flip", "format"] = Field(
        "flip",
        description="oracle: the right answer; constant: always `answer`; flip: the right answer with probability "
        "1 - flip, else another choice; format: the right answer in varied wordings",
    )
    answer: str = Field("yes", description="what `constant` says")
    flip: float = Field(0.2, ge=0, le=1, description="probability of a wrong answer, drawn per sample")
    seed: int = Field(0, ge=-(2**63), lt=2**63, description="of the draws")
    latency_s: float = Field(0.0, ge=0, le=600, description="seconds before each answer")
    word_s: float = Field(0.0, ge=0, le=60, description="seconds before each word of an answer that is streamed")
    error_rate: float = Field(0.0, ge=0, le=1, description="share of requests, drawn per sample, that fail for good")
    context_tokens: int = Field(32768, gt=0, le=10**9, description="longest prompt, at four characters a token")

    def for_likelihood(self) -> Self:
        return self

    def request_fields(self, request: Request) -> dict[str, object]:
        hints: dict[str, object] = {"choices": list(request.choices)}
        answers = bool(request.choices)  # Without choices the text follows from the prompt alone.
        if answers and self.behaviour != "constant":
            hints["target"] = request.target
        if self.error_rate or (answers and self.behaviour in ("flip", "format")):
            hints["sample_id"] = request.sample_id
        return {**super().request_fields(request), **hints}

    @property
    def takes_system_prompt(self) -> bool:
        return True  # It reads none, as it reads no prompt.


class MockModel(BaseAPIModel):
    """Answers from the request alone, with draws that belong to the sample and its epoch, and to nothing else."""

    Params: ClassVar[type[ModelParams]] = MockParams
    adaptive = False  # There is no endpoint whose limit could be found out.

    def __init__(self, params: MockParams, pool: Pool, rate: Rate | None) -> None:
        super().__init__(params, pool, rate)
        self.params = params

    def scope(self) -> str:
        return "mock"

    @classmethod
    def identity_of(cls, params: ModelParams) -> dict[str, object]:
        return {"class": "mock", **params.model_dump(mode="json", exclude=set(params.unidentified))}

    def identity(self) -> dict[str, object]:
        return self.identity_of(self.params)

    def request_identity(self, request: Request) -> dict[str, object]:
        return self.params.request_fields(request)

    async def generate(self, request: Request, emit: Emit | None = None) -> Response:
        if self.params.error_rate and _generator(self.params.seed, request).random() < self.params.error_rate:
            raise CallError(ErrorKind.SERVER, "an error of the mock for good, as error_rate asks for")
        response = await super().generate(request)
        if emit is not None:
            for word in re.findall(r"\s*\S+|\s+$", response.text):
                await asyncio.sleep(self.params.word_s)
                emit(word)
        return response

    async def call(self, request: Request) -> Response:
        if self.params.latency_s:
            await asyncio.sleep(self.params.latency_s)
        tokens = len(request.text) // 4
        if tokens > self.params.context_tokens:
            raise CallError(
                ErrorKind.TOO_LONG,
                f"prompt of about {tokens} tokens, the model takes {self.params.context_tokens}",
            )
        draw = _generator(self.params.seed, request)
        draw.random()  # This is the draw that error_rate compares.
        if request.continuations:
            return self._likelihoods(request, tokens, draw)
        text, reason = _cut(self._answer(request, draw), request.options)
        return Response(text, reason, prompt_tokens=tokens, completion_tokens=len(text) // 4 + 1)

    def _likelihoods(self, request: Request, tokens: int, draw: random.Random) -> Response:
        """What it would answer as the likeliest choice, by as much as is drawn; the others are alike."""
        oracle = self.params.behaviour == "format"  # It words the right answer, and here there are no words.
        likeliest = request.target if oracle else self._answer(request, draw)
        if likeliest not in request.continuations:
            raise CallError(ErrorKind.BAD_REQUEST, f"params.answer is '{likeliest}', which is none of the choices")
        even = 1 / len(request.continuations)
        surplus = (1 - even) * (0.1 + 0.8 * draw.random())
        others = even - surplus / (len(request.continuations) - 1)
        logprobs = (math.log(even + surplus if text == likeliest else others) for text in request.continuations)
        details = ReplyDetails(choice_logprobs=tuple(logprobs))
        return Response(likeliest, prompt_tokens=tokens, details=details)

    def max_answer_tokens(self, request: Request) -> int:
        texts = (self.params.answer, *request.choices) if request.choices else (request.text,)
        return 16 + max(map(len, texts)) // 4

    def _answer(self, request: Request, draw: random.Random) -> str:
        if not request.choices and not (request.messages and self.params.behaviour == "constant"):
            text = replace(request, system="").text
            return " ".join(text.split()[-40:])  # This is a text for the next stage, not an answer.
        match self.params.behaviour:
            case "constant":
                return self.params.answer
            case "flip" if draw.random() < self.params.flip:
                return draw.choice([choice for choice in request.choices if choice != request.target])
            case "format":
                return draw.choice(_WORDINGS).format(request.target, request.target.capitalize())
        return request.target


def _cut(text: str, options: GenerationOptions) -> tuple[str, str]:
    """An answer cut as the options say, at four characters a token, and the finish reason."""
    text = text[: min((place for place in map(text.find, options.stop) if place >= 0), default=len(text))]
    if options.max_tokens and len(text) // 4 + 1 > options.max_tokens:
        return text[: 4 * options.max_tokens - 1], "length"
    return text, "stop"


def _generator(seed: int, request: Request) -> random.Random:
    key: Any = (seed, request.sample_id, *([request.epoch] if request.epoch else []))
    return random.Random(hashlib.sha256(repr(key).encode()).digest())
