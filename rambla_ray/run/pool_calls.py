"""The requests of one pool, counted before a run: what is certain, what may come, what is still to be asked."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rambla_ray.actors.model import Model
from rambla_ray.config.model import ModelConfig
from rambla_ray.config.task import TaskConfig
from rambla_ray.ledger.look import Lengths, Look
from rambla_ray.run.placement import Level
from rambla_ray.schema import SCORE, Identity, Request, Response, Role, Step
from rambla_ray.tasks.stages import Generate

CHARS_PER_TOKEN = 4  # A token is taken to be so many characters long.
PARSED = 500  # Of so many answers in the ledger, of each pool and kind, the lengths are looked at.


class Kind(NamedTuple):
    """What kind of answer is asked for.

    Args:
        role: whose it is.
        form: `choice`, one of the task's; `text`, any other; `likelihood` and `score`, which are not written.
        choices: of how many the likelihood is asked for.
    """

    role: Role
    form: str
    choices: int = 0


class Written(NamedTuple):
    """An answer that is part of a later prompt: from which pool of the stream, and of what kind."""

    place: int
    kind: Kind


class Sent(NamedTuple):
    """A request: a number made from its request_id, that id, about how many tokens, and the kind of answer."""

    number: int
    request_id: str
    tokens: int
    kind: Kind


@dataclass(slots=True)
class Open:
    """Requests whose prompts hold answers that are not known yet.

    Args:
        calls: how many.
        tokens: of their prompts, without those answers.
        parts: the answers, and in how many prompts they stand.
    """

    calls: int = 0
    tokens: int = 0
    parts: Counter[Written] = field(default_factory=Counter)

    def add(self, tokens: int, parts: Sequence[Written]) -> None:
        """Count one more."""
        self.calls += 1
        self.tokens += tokens
        self.parts.update(parts)


class Requests:
    """Requests that are known, in 16 bytes each, as a run has millions: their numbers, their tokens, a kind."""

    def __init__(self) -> None:
        self._numbers, self._tokens, self._kinds = array("Q"), array("I"), array("I")

    def add(self, sent: Sent, kind: int = 0) -> None:
        """Take in a request, which may be there already."""
        self._numbers.append(sent.number)
        self._tokens.append(sent.tokens)
        self._kinds.append(kind)

    def without(self, others: NDArray[np.uint64]) -> Distinct:
        """Each request once, but for those of these numbers."""
        numbers, first = np.unique(np.array(self._numbers, np.uint64), return_index=True)
        is_new = ~np.isin(numbers, others)
        tokens, kinds = np.array(self._tokens, np.int64)[first], np.array(self._kinds, np.int64)[first]
        return Distinct(numbers[is_new], tokens[is_new], kinds[is_new])


class Distinct(NamedTuple):
    """Requests, each once: their numbers, tokens and kinds."""

    numbers: NDArray[np.uint64]
    tokens: NDArray[np.int64]
    kinds: NDArray[np.int64]


NOBODY = np.empty(0, np.uint64)


@dataclass(slots=True)
class PoolCalls:
    """The requests of one pool of a stream.

    What `first`, `later` and `open` hold depends on nothing but the plan.

    Args:
        first: those that are sent whatever is answered.
        later: those that are sent if earlier stages are answered, and whose prompt is known.
        open: those whose prompt is not known.
        repeated: of `first`, those that a pool counted before sends as well, so that they are one call.
        in_ledger: those that are known, and that the ledger answers; None where that cannot be known.
        left: those that are known, and still to be asked.
        left_open: those that are not known, and may still be asked.
        left_by_kind: the calls of both by the kind of answer.
        left_tokens: the tokens of their prompts, without answers that are not known.
        lengths: by kind, of the answers in the ledger to this pool's own requests.
        kinds: that `left` names by their places.
    """

    first: Requests = field(default_factory=Requests)
    later: Requests = field(default_factory=Requests)
    open: Open = field(default_factory=Open)
    repeated: int = 0
    in_ledger: Requests | None = None
    left: Requests = field(default_factory=Requests)
    left_open: Open = field(default_factory=Open)
    left_by_kind: Counter[Kind] = field(default_factory=Counter)
    left_tokens: int = 0
    lengths: defaultdict[Kind, Lengths] = field(default_factory=lambda: defaultdict(Lengths))
    kinds: list[Kind] = field(default_factory=list)

    def promise(self, sent: Sent, parts: Sequence[Written], *, is_first: bool) -> None:
        """Count a request of a sample that is in no ledger."""
        if parts:
            self.open.add(sent.tokens, parts)
        else:
            (self.first if is_first else self.later).add(sent)

    def leave(self, exact: Sent | None, sent: Sent, parts: Sequence[Written]) -> None:
        """Count a request that is still to be asked: the exact one if it is known, else as it was promised."""
        if exact is None:
            is_reading = sent.kind.role == Role.READER
            self.left_open.add(sent.tokens, parts)
            self.left_by_kind[sent.kind._replace(form="reading") if is_reading else sent.kind] += 1
            return
        if sent.kind not in self.kinds:
            self.kinds.append(sent.kind)
        self.left.add(exact, self.kinds.index(sent.kind))

    def close(self, sent: NDArray[np.uint64], left: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], ...]:
        """Count each request once, when all have been taken in.

        Args:
            sent: the first requests of the pools that were counted before.
            left: those that are still to be asked of them.

        Returns:
            both with those of this pool.
        """
        own, asked = self.first.without(NOBODY), self.left.without(left)
        self.repeated = int(np.isin(own.numbers, sent).sum())
        self.left_tokens = int(asked.tokens.sum()) + self.left_open.tokens
        for place, count in enumerate(np.bincount(asked.kinds, minlength=len(self.kinds))):
            self.left_by_kind[self.kinds[place]] += int(count)
        return np.union1d(sent, own.numbers), np.union1d(left, asked.numbers)

    def counted(self) -> tuple[int, int, int]:
        """How many calls are certain, how many depend on answers at most, and how many tokens all prompts have.

        The tokens are about as many, without those of the answers that stand in prompts.
        """
        first = self.first.without(NOBODY)
        later = self.later.without(first.numbers)
        tokens = int(first.tokens.sum() + later.tokens.sum()) + self.open.tokens
        return len(first.numbers), len(later.numbers) + self.open.calls, tokens


class Asked:
    """A pool as a plan asks it: how its model knows requests, and what is counted of them.

    Args:
        level: the pool.
        look: what the ledger holds.
    """

    def __init__(self, level: Level, look: Look) -> None:
        self.level, self.calls = level, PoolCalls()
        self._look = look
        self._params = level.config.params
        known = known_identity(level.config)
        if known is not None and look.is_possible:
            self.calls.in_ledger = Requests()
        self._identity = Identity(_stand_in(level.config) if known is None else known)

    @property
    def scores(self) -> bool:
        """Whether its model says how alike the two texts of a request are."""
        return self._params.produces == SCORE

    def sent(self, request: Request, task: TaskConfig, stage: Generate) -> Sent:
        """A request of a stage as this pool knows it."""
        request_id = self._identity.request_id(self._params.request_fields(request))
        return Sent(int(request_id[:16], 16), request_id, self._tokens(request), self._kind(task, stage))

    def _kind(self, task: TaskConfig, stage: Generate) -> Kind:
        if self.scores:
            return Kind(stage.role, "score")
        if choices := task.choices_asked_by(stage):
            return Kind(stage.role, "likelihood", len(choices))
        is_last = stage.role == Role.READER or stage is task.generates[-1]
        return Kind(stage.role, "choice" if is_last else "text")

    def _tokens(self, request: Request) -> int:
        """About how many tokens are charged for a prompt, which an endpoint reads once for each of its choices."""
        tokens = (len(request.text) + len(request.pair or "")) // CHARS_PER_TOKEN + 1
        if self._params.is_charged and request.continuations:
            tokens *= len(request.continuations)
        beside = "" if request.system or self.scores else self._params.system_prompt
        return tokens + len(beside) // CHARS_PER_TOKEN

    def answer(self, sent: Sent, *, wanted: bool) -> Response | None:
        """What the ledger holds for a request. An answer that nobody wants is read for its length alone, or not."""
        if self.calls.in_ledger is None or sent.request_id not in self._look:
            return None
        lengths = self.calls.lengths[sent.kind]
        counts = lengths.answers < PARSED
        response = self._look.answer(sent.request_id) if wanted or counts else Response("")
        if response is not None:
            self.calls.in_ledger.add(sent)
            if counts:
                self.calls.lengths[sent.kind] = lengths.plus(response)
        return response

    def step(self, sent: Sent, stage: Generate, response: Response) -> Step:
        """The step of a sample that the ledger answers, as far as it is read for its answer."""
        return Step(
            f"{stage.kind}:{stage.output}",
            str(stage.role),
            self.level.name,
            sent.request_id,
            "",
            text=response.text,
            finish_reason=SCORE if self.scores else response.finish_reason,
            details=response.details,
        )


def known_identity(config: ModelConfig) -> Mapping[str, object] | None:
    """What a model says that it is, where its params tell that; None where it is known only once it is loaded.

    A class that says otherwise what it is, or what its requests are, than the one that tells it from params is not
    believed.
    """
    kind = config.kind
    teller = _definer(kind, "identity_of")
    if _definer(kind, "identity") is not teller or _definer(kind, "request_identity") not in (Model, teller):
        return None
    identity: Mapping[str, object] | None = kind.identity_of(config.params)
    return identity


def _definer(kind: type[Any], method: str) -> type[Any]:
    """The class that defines a method of a class."""
    return next(base for base in kind.__mro__ if method in vars(base))


def _stand_in(config: ModelConfig) -> dict[str, object]:
    """What tells models apart whose identity is not known yet."""
    params = config.params.model_dump(mode="json", exclude=set(config.params.unidentified))
    return {"kind": f"{config.kind.__module__}.{config.kind.__qualname__}", "params": params}
