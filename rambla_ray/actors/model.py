"""What every model is: one model in one actor, which answers requests."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import ClassVar, NamedTuple, Protocol

from rambla_ray.actors.local.usage import LocalUsage
from rambla_ray.config.model import ModelParams
from rambla_ray.config.sections import Chaos, Pool, Rate
from rambla_ray.ledger.batches import BatchMark
from rambla_ray.schema import SCORE, Request, Response, well_formed

Emit = Callable[[str], None]
Size = tuple[int, int]  # The bytes of a request's prompt, and the most tokens of its answer.
NO_SIZE: Size = (0, 0)  # Of what costs nothing.

ASSUMED_ANSWER_TOKENS = 4096  # The longest answer, to a budget, of a model that does not say how long it may be.


def hide_gpus(pool: Pool) -> None:
    """Hide the node's GPUs, which Ray shows to an actor without any; called before its model is made."""
    if not pool.num_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


class Answered(Enum):
    """Whether a model has answered a run."""

    NOW = "now"  # In this invocation.
    BEFORE = "before"  # In an earlier one, or another run: the key may have been withdrawn since.
    NEVER = "never"


class BatchCounts(NamedTuple):
    """What a model's batches of its provider have done, of those that are under way."""

    batches: int = 0
    done: int = 0
    requests: int = 0


class BatchBook(Protocol):
    """What a model knows of its run's batches, and writes down of them; see `actors.ledger_batches.BatchBook`."""

    asked: Callable[[], str]

    def new(self, request_ids: Iterable[str]) -> BatchMark: ...

    async def among(self, request_ids: list[str]) -> list[BatchMark]: ...

    async def write(self, line: bytes) -> None: ...

    async def stored(self, request_ids: Iterable[str]) -> None: ...

    def report(self, counts: BatchCounts) -> None: ...


async def _never() -> Answered:
    return Answered.NEVER


async def _always() -> bool:
    return True


def byte_count(text: str) -> int:
    """How many bytes a text has in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def without_lone_surrogates(response: Response) -> Response:
    """A response whose texts UTF-8 can hold; see `schema.well_formed`."""
    text, reasoning = well_formed(response.text), well_formed(response.details.reasoning)
    if text is response.text and reasoning is response.details.reasoning:
        return response
    return replace(response, text=text, details=replace(response.details, reasoning=reasoning))


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a model takes from the run that it answers for.

    Args:
        notify: takes a line that the user should see, once however many actors send it.
        chaos: faults to inject.
        is_held: whether no call that is paid for should be made now; `Model.resume` follows a change of it.
        charge: takes the tokens of a prompt and of an answer, of a call that gave none and was charged for.
        reserve: whether the run's budget bears one more call of the request that the present task answers, beside the
            first and those that were not charged for: after one that was charged, or while another is in flight. It
            waits a moment for it, and raises Draining when the run is being stopped.
        answered: whether the model has answered the run, in any actor; asked by one none of whose requests has an
            answer, it waits for those of the others.
        batches: of the provider, as the run's ledger has them; None outside of a run.
        stops: whether an error that no other call would escape ends it, so that nothing more is asked.
    """

    notify: Callable[[str], None] = print
    chaos: Chaos = field(default_factory=Chaos)
    is_held: Callable[[], bool] = lambda: False
    charge: Callable[[int, int], None] = lambda prompt_tokens, completion_tokens: None
    reserve: Callable[[], Awaitable[bool]] = _always
    answered: Callable[[], Awaitable[Answered]] = _never
    batches: BatchBook | None = None
    stops: bool = True


class Model(ABC):
    """One model in one actor. Subclasses say what their params are and how a request is answered.

    Args:
        params: this model's own, already checked.
        pool: resources and concurrency of one actor; `num_cpus` and `num_gpus` are settled.
        rate: the endpoint's limits; None for a model without any.
    """

    Params: ClassVar[type[ModelParams]]

    def __init__(self, params: ModelParams, pool: Pool, rate: Rate | None) -> None:
        self.pool = pool
        self.rate = rate
        self.context = RunContext()

    @classmethod
    def several(cls, params: Mapping[str, ModelParams], pool: Pool, rate: Rate | None) -> dict[str, Model]:
        """Models of this class for one actor, by name. Those that have weights in common load them once.

        Args:
            params: by name, those of each model.
            pool: of the actor, for all of them together.
            rate: as for one model.
        """
        return {name: cls(own, pool, rate) for name, own in params.items()}

    def attach(self, context: RunContext) -> None:
        """Answer for a run from now on."""
        self.context = context

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Everything about this model that may change an answer, as JSON values."""

    @classmethod
    def identity_of(cls, params: ModelParams) -> dict[str, object] | None:
        """What `identity` returns of a model with these params; None where that is not known before it is made."""
        return None

    def request_identity(self, request: Request) -> dict[str, object]:
        """Everything about this request that may change the answer, as JSON values; see `ModelParams`."""
        return request.identity_fields()

    def max_answer_tokens(self, request: Request) -> int:
        """The longest answer that may come, in tokens; 0 where that is not known."""
        return 0

    def size(self, request: Request) -> Size:
        """What one call of a request may cost, as a run's budget reserves it. A score has no tokens."""
        prompt_bytes = byte_count(request.text) + byte_count(request.pair or "")
        if self.Params.produces == SCORE:
            return prompt_bytes, 0
        return prompt_bytes, self.max_answer_tokens(request) or ASSUMED_ANSWER_TOKENS

    def open(self) -> None:
        """Wait until the model can answer, where it is not known yet whether it can. Raises CallError (`load`)."""
        return None

    def check_health(self) -> None:
        """Whether this model can go on answering, which one that is served is asked now and then. Raises CallError."""
        return None

    def close(self) -> None:
        """Give back what would outlive this object, such as processes; nothing is asked any more."""
        return None

    def measure(self) -> LocalUsage | None:
        """What this actor has computed; None where an endpoint does the work."""
        return None

    def drain(self) -> None:
        """Begin nothing new: requests that wait for their turn raise Draining; those under way go on."""
        return None

    def resume(self) -> None:
        """Look at the run's `is_held` again, which may have changed."""
        return None

    async def settle(self) -> None:
        """Wait for what is to be done once answers are stored; called at the end of each block."""
        return None

    @abstractmethod
    async def generate(self, request: Request, emit: Emit | None = None) -> Response:
        """Answer one request. Cancelled, it gives up what it holds: a slot, a place in a batch.

        Args:
            request: what to answer.
            emit: takes the answer's text piece by piece as it is made, in this event loop; the pieces add up to the
                response's text. A model that cannot do so leaves it alone.

        Raises:
            CallError: there is no answer.
            Draining: the run is being stopped.
        """
