"""What the records of one run add up to: calls, tokens, seconds, and the deaths of processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

from rambla_ray.ledger.record import Kind, Record, body_of, run_tag
from rambla_ray.schema import NO_DETAILS, Response, Tokens


@dataclass(slots=True)
class Spent:
    """What calls took: counted per model and role, of one run. Times are seconds, summed over calls.

    `calls` are those whose end is recorded; `failed` are requests of which at least one was made. `repeated` are
    claims that nothing followed: while a run goes on those in flight, after it the ones whose process died; each may
    have been a call, and paid, whose end is not known. Tokens are those of the answers, and those that replies without
    an answer say they cost; `cached_tokens` and `cache_write_tokens` are among those of prompts, `reasoning_tokens`
    among those of answers. `batched` are the answers that came in a provider's batch, and what begins with it says how
    many of the tokens those had.
    """

    calls: int = 0
    answered: int = 0
    retried: int = 0
    hedged: int = 0
    failed: int = 0
    repeated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    calling_s: float = 0.0
    waited_s: float = 0.0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    batched: int = 0
    batched_prompt_tokens: int = 0
    batched_completion_tokens: int = 0
    batched_cached_tokens: int = 0
    batched_cache_write_tokens: int = 0

    @property
    def tokens(self) -> Tokens:
        """All that is charged."""
        return Tokens(self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.cache_write_tokens)

    @property
    def tokens_outside_batches(self) -> Tokens:
        """Those of `tokens` that are charged at the full price."""
        return self.tokens.plus(self.tokens_in_batches, -1) if self.batched else self.tokens

    @property
    def tokens_in_batches(self) -> Tokens:
        """Those of `tokens` that are charged at the price of batches."""
        return Tokens(
            self.batched_prompt_tokens,
            self.batched_completion_tokens,
            self.batched_cached_tokens,
            self.batched_cache_write_tokens,
        )

    def add(self, record: Record) -> None:
        """Count one record. The loser of a hedged call is charged like the answer that won."""
        response, trace = record.response, record.trace
        self.calls += trace.attempts
        self.hedged += trace.hedged
        self.retried += max(0, trace.attempts - trace.hedged - 1)
        self.calling_s += sum(attempt.took_s for attempt in trace.tries)
        self.waited_s += trace.waited_s
        self.prompt_tokens += trace.failed_prompt_tokens
        self.completion_tokens += trace.failed_completion_tokens
        if response is None:
            self.failed += trace.attempts > 0
            return
        self.answered += 1
        charged = 1 + trace.hedged
        self.prompt_tokens += response.prompt_tokens * charged
        self.completion_tokens += response.completion_tokens * charged
        if response.details is not NO_DETAILS:
            self._add_details(response, charged)

    def _add_details(self, response: Response, charged: int) -> None:
        """Count what an answer, charged so many times, says beyond its tokens."""
        details = response.details
        self.cached_tokens += details.cached_tokens * charged
        self.cache_write_tokens += details.cache_write_tokens * charged
        self.reasoning_tokens += details.reasoning_tokens * charged
        if details.batch:
            self.batched += 1
            self.batched_prompt_tokens += response.prompt_tokens * charged
            self.batched_completion_tokens += response.completion_tokens * charged
            self.batched_cached_tokens += details.cached_tokens * charged
            self.batched_cache_write_tokens += details.cache_write_tokens * charged


class Tally:
    """The sums over the lines of one run, in all its invocations.

    Args:
        run_id: the run; lines of others are left out.
        in_batches: requests that are in a provider's batch: who claims one again makes no further call.
    """

    def __init__(self, run_id: str, in_batches: Container[str] = ()) -> None:
        self._run_id, self._in_batches = run_id, in_batches
        self.tag = run_tag(run_id).encode()
        self.spent: dict[tuple[str, str], Spent] = {}  # by (model, role)
        self.deaths: Counter[str] = Counter()  # request_id → processes that died asking it
        self.failures: dict[str, bytes] = {}  # request_id → the line of its last failure
        self._open: Counter[str] = Counter()  # request_id → claims that nothing has followed

    def add(self, kind: str, request_id: str, line: bytes) -> None:
        """Count a line whose tag is this run's.

        Raises:
            ValueError, KeyError, TypeError: its body is not what its kind asks for.
        """
        body = body_of(line)
        if body["run"] != self._run_id:
            return
        spent = self.spent.setdefault((str(body["model"]), str(body["role"])), Spent())
        if kind == Kind.CLAIM:
            if self._open.get(request_id) and request_id in self._in_batches:
                return
            self._open[request_id] += 1
            spent.repeated += 1  # until its end is found
            return
        if kind == Kind.DEATH:
            self.deaths[request_id] += 1
            return
        if self._open[request_id] > 0:
            self._open[request_id] -= 1
            spent.repeated -= 1
        if not self._open[request_id]:
            del self._open[request_id]
        if kind == Kind.RELEASE:
            return
        spent.add(Record.from_body(kind, request_id, body))
        if kind == Kind.FAILURE:
            self.failures[request_id] = line
