"""A request in a local model's terms, and what answers it: the protocol of engines."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

from rambla_ray.actors.local.reasoning import Answer, Read
from rambla_ray.actors.local.usage import LocalUsage
from rambla_ray.actors.model import Emit
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import NO_DETAILS, ReplyDetails, Response
from rambla_ray.scoring.answers.thoughts import settled

INCOMPLETE_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # A text ends with it while its last character lacks tokens.

NOT_A_NUMBER = "the model computed NaN or infinity; try a wider dtype"  # Why a job whose result is one fails.

Encoding = dict[str, list[int]]  # What a tokenizer makes of a text or a pair: input_ids, perhaps token_type_ids.


@dataclass(eq=False)
class Job:
    """One request in the model's terms.

    Args:
        encodings: what is run for it.
        max_new_tokens: the most that it may generate.
        headroom: tokens that fit into the model's context behind the prompt.
        emit: takes the text piece by piece, in the event loop of `done`.
        done: gets the response or the error. Cancelled, the job is not needed any more.
    """

    encodings: list[Encoding]
    max_new_tokens: int = 0
    headroom: float = math.inf
    emit: Emit | None = None
    done: asyncio.Future[Response] | None = None
    response: Response = field(init=False)
    error: Exception | None = None

    def refuse(self, error: CallError) -> None:
        """Give `done` an error, without a call. Nothing happens if nobody waits."""
        if self.done is not None and not self.done.done():
            self.done.set_exception(error)

    def resolve(self, usage: LocalUsage) -> None:
        """Set the result of `done`, and count the response's tokens. Nothing happens if nobody waits."""
        if self.done is None or self.done.done():
            return
        if self.error is not None:
            self.done.set_exception(self.error)
            return
        usage.prompt_tokens += self.response.prompt_tokens
        usage.completion_tokens += self.response.completion_tokens
        self.done.set_result(self.response)

    @cached_property
    def tokens(self) -> list[int]:
        """The longest encoding's token numbers."""
        return max((encoding["input_ids"] for encoding in self.encodings), key=len)


@dataclass(frozen=True)
class Draw:
    """How the tokens of one answer are drawn.

    Args:
        options: names, out of DRAW_OPTIONS and in their order, and values.
        seed: of this answer alone, so that its draws do not depend on its neighbours in a batch.
    """

    options: tuple[tuple[str, Any], ...]
    seed: int

    @cached_property
    def source(self) -> random.Random:
        """The source of one number in [0, 1) per token."""
        return random.Random(self.seed)


@dataclass(eq=False, kw_only=True)
class Prompt(Job):
    """A prompt to a language model. Its answer ends at a stop text or when nobody waits for it, and can be streamed.

    What the model thinks before is no part of the answer: it is not streamed, and a stop text in it ends nothing.

    Args:
        stop: texts before the first of which the answer ends.
        read: tokens to the answer in them.
        draw: how tokens are drawn; None for greedy decoding.
    """

    stop: tuple[str, ...]
    read: Read
    draw: Draw | None
    emitted: str = ""  # What was emitted.
    kept: str = ""  # What was emitted, and turned out to be a thought when it could not be taken back any more.

    def on_token(self, tokens: Callable[[], list[int]]) -> bool:
        """To be called after each token: emit the text that is final by now.

        Args:
            tokens: returns the answer's tokens so far.

        Returns:
            Whether generation of this answer may stop.
        """
        if self.done is not None and self.done.cancelled():
            return True
        if self.emit is None and not self.stop:
            return False
        text = self._behind_emitted(self.read(tokens()).text)
        if any(stop in text for stop in self.stop):
            return True
        held_back = next((size for size in range(self._longest_stop, 0, -1) if self._may_stop(text[-size:])), 0)
        if not text.endswith(INCOMPLETE_CHARACTER):
            self._emit_up_to(text[: min(len(text) - held_back, settled(text))])
        return False

    def set_response(self, tokens: list[int], end_tokens: Collection[int]) -> None:
        """Set the response from the tokens that were generated, up to the first end token among them."""
        tokens = tokens[: self.max_new_tokens]
        end = next((place for place, token in enumerate(tokens) if token in end_tokens), None)
        answer = self.read(tokens[:end])
        text = self._behind_emitted(answer.text)
        cut = min((place for stop in self.stop if (place := text.find(stop)) >= 0), default=None)
        self._emit_up_to(text[:cut])
        only_thought = bool(answer.reasoning) and not text.strip()  # It is cut off, wherever it ended.
        self.response = Response(
            text=text[:cut],
            finish_reason="length" if cut is None and (end is None or only_thought) else "stop",
            prompt_tokens=len(self.tokens),
            completion_tokens=len(tokens) if end is None else end + 1,
            details=_details(answer),
        )

    def _behind_emitted(self, text: str) -> str:
        """The answer, which goes on behind what was emitted, also where that is no part of it any more."""
        if (whole := self.kept + text).startswith(self.emitted):
            return whole
        if not text:
            return self.emitted
        self.kept = f"{self.emitted}\n"
        return self.kept + text

    @property
    def _longest_stop(self) -> int:
        return max(map(len, self.stop), default=1) - 1

    def _may_stop(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self.stop)

    def _emit_up_to(self, text: str) -> None:
        piece = text[len(self.emitted) :]
        if self.emit is not None and self.done is not None and piece:
            self.emitted = text
            self.done.get_loop().call_soon_threadsafe(self.emit, piece)


def _details(answer: Answer) -> ReplyDetails:
    if not (answer.reasoning or answer.reasoning_tokens):
        return NO_DETAILS
    return ReplyDetails(reasoning=answer.reasoning, reasoning_tokens=answer.reasoning_tokens)


@dataclass(eq=False, kw_only=True)
class Choices(Job):
    """How likely each of some continuations is behind a prompt. Nothing is generated, and nothing is emitted.

    `encodings` has a row for each continuation, the prompt in front of it.

    Args:
        continuations: as they were asked for; the likeliest is the response's text, the first of those that are alike.
        scored: of each row, the number of tokens at its end whose log-probabilities are summed.
    """

    continuations: tuple[str, ...]
    scored: tuple[int, ...]

    @property
    def rows(self) -> list[list[int]]:
        """The tokens of each row, at least one before those that are scored."""
        return [encoding["input_ids"] for encoding in self.encodings]

    def set_logprobs(self, logprobs: Sequence[float]) -> None:
        """Set the response from the log-probability of each continuation, or an error where one is no number."""
        if not all(map(math.isfinite, logprobs)):
            self.error = CallError(ErrorKind.INTERNAL, NOT_A_NUMBER)
            return
        prompt = len(self.rows[0]) - self.scored[0]
        self.response = Response(
            text=self.continuations[logprobs.index(max(logprobs))],
            prompt_tokens=prompt + sum(self.scored),
            details=ReplyDetails(choice_logprobs=tuple(logprobs)),
        )


LanguageJob = Prompt | Choices  # What a language model's engine answers.

J = TypeVar("J", bound=Job)
J_contra = TypeVar("J_contra", bound=Job, contravariant=True)


class Engine(Protocol[J_contra]):
    """What answers jobs, in an order of its own. Its methods are called in the event loop."""

    def submit(self, job: J_contra) -> None:
        """Answer a job: its `done` gets a response or an error. Once it is cancelled, the job is dropped."""

    def drain(self) -> None:
        """Give up the jobs that have not begun: their `done` gets Draining."""


def end_tokens(eos_token_id: int | list[int] | None) -> list[int]:
    """The tokens that end an answer, from what a generation config says; empty if none does."""
    if eos_token_id is None:
        return []
    return eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
