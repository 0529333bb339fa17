"""The sections that configs are made of: pools, rates, prices, budgets, injected faults."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rambla_ray.schema import Tokens
from rambla_ray.tasks.closed import Closed, omitted
from rambla_ray.tasks.reader import ReaderTemplate

MOST_ACTORS = 10**6  # Whether a cluster holds as many as are asked for is found out when it is looked at.
MOST_OF_A_NODE = 10**6  # The same for the CPUs and GPUs of one actor.
SHORTEST_S = 1e-9  # A time limit is no shorter than this, in seconds.
MOST_DOLLARS = 10**9  # For a million tokens.
HALF_PRICE = 0.5  # Of calls in a batch, by the price lists of OpenAI and Anthropic.

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
# Two names, of a model and a task, and an ending make a file's name, which has at most 255 characters.
Name = Annotated[str, Field(pattern=NAME, max_length=100)]
RunName = Annotated[str, Field(pattern=NAME, max_length=200)]
ALL_TASKS = "all"  # In `task=`, and where models are compared: every task of the run. No task has this name.
MOST_JUDGES = 25  # Of a panel.


def _joined(value: Any) -> Any:
    is_list = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    words = list(value) if is_list else value.split(",") if isinstance(value, str) else None
    return value if words is None else ",".join(word.strip() for word in words)


_PLAYER = "[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"  # As long as a name may be.
# A model config, or several with commas between them, which are a panel.
Players = Annotated[str, BeforeValidator(_joined), Field(pattern=rf"^{_PLAYER}(,{_PLAYER})*$")]


class Pool(Closed):
    """The Ray actors of one model config. All keys are optional; the plan decides what is not given."""

    min_size: int = Field(1, ge=1, le=MOST_ACTORS, description="actors to start with")
    max_size: int | None = Field(None, ge=1, le=MOST_ACTORS, description="actors at most; min_size when not given")
    num_cpus: float | None = Field(
        None, ge=0, le=MOST_OF_A_NODE, description="CPUs of one actor; API models take none"
    )
    num_gpus: float | None = Field(
        None, ge=0, le=MOST_OF_A_NODE, description="GPUs of one actor; one for a local model where there are any"
    )
    nodes: int | None = omitted(
        "nodes that each actor's model is spread over, with num_gpus / nodes GPUs on each; for backend: vllm",
        ge=1,
        le=MOST_ACTORS,
    )
    batch_size: Annotated[int, Field(le=2**20)] | Literal["auto"] = Field(
        "auto", description="requests a local model answers together"
    )
    max_concurrency: int = Field(64, ge=1, le=4096, description="requests one actor has in flight")

    @property
    def largest(self) -> int:
        """How many actors there can be."""
        return self.max_size or self.min_size

    @property
    def node_count(self) -> int:
        """How many nodes one actor's model is spread over."""
        return self.nodes or 1

    @model_validator(mode="after")
    def _nodes_share_the_gpus(self) -> Self:
        gpus = self.num_gpus or 0.0
        if self.node_count > 1 and (not gpus or gpus % self.node_count):
            raise ValueError(f"nodes {self.nodes} needs num_gpus that they share equally; num_gpus is {gpus:g}")
        return self

    @model_validator(mode="after")
    def _sizes_in_order(self) -> Self:
        if self.max_size is not None and self.max_size < self.min_size:
            raise ValueError(f"max_size {self.max_size} is below min_size {self.min_size}")
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f"batch_size {self.batch_size} is below 1")
        return self


class Rate(Closed):
    """What an endpoint allows, held for the whole cluster by its governor, and how long a request may take.

    Without a limit the number of calls in flight adapts to what the endpoint takes.
    """

    requests_per_minute: int | None = Field(None, gt=0, le=10**9, description="requests in any minute")
    tokens_per_minute: int | None = Field(None, gt=0, le=10**12, description="prompt and answer tokens in any minute")
    timeout_s: float = Field(180.0, ge=SHORTEST_S, le=3600, description="how long one call may take")
    give_up_after_s: float = Field(
        900.0,
        ge=SHORTEST_S,
        le=86400,
        description="how long a request may take, waits included, and the endpoint may let nobody through",
    )
    hedge: bool = Field(False, description="ask again what takes longer than 95 % of the calls; first answer wins")

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None


class Chaos(Closed):
    """Faults to inject into the calls of API models and the mock, to see that a run survives them."""

    http429: float = Field(0.0, ge=0, le=1, description="share of calls answered with 429 and a Retry-After")
    http500: float = Field(0.0, ge=0, le=1, description="share of calls answered with 500")
    reset: float = Field(0.0, ge=0, le=1, description="share of calls whose connection is reset")
    garbage: float = Field(0.0, ge=0, le=1, description="share of calls whose reply is not what the API promises")
    kill_actor_every: int | None = Field(
        None, ge=2, le=10**9, description="calls after which an actor kills its own process"
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.http429 + self.http500 + self.reset + self.garbage > 1:
            raise ValueError("http429, http500, reset and garbage are shares of all calls and add up to more than 1")
        return self

    @property
    def is_set(self) -> bool:
        """Whether anything is to be injected."""
        return self != Chaos()


class Budget(Closed):
    """What a run may spend in all, over all its invocations: no call is made that may lead beyond it.

    What a call may cost is reserved before it is made, so that a run goes beyond its budget by no more than what one
    call costs above what was likely.
    """

    usd: float | None = Field(
        None, gt=0, le=10**9, description="US dollars above 0, by the price of each model config"
    )
    tokens: int | None = Field(None, gt=0, le=10**15, description="prompt and answer tokens, at least 1")

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return self.usd is not None or self.tokens is not None


class Price(Closed):
    """What an endpoint charges, in US dollars per million tokens."""

    input_per_million: float = Field(ge=0, le=MOST_DOLLARS, description="for prompt tokens")
    output_per_million: float = Field(
        ge=0, le=MOST_DOLLARS, description="for answer tokens, among which those of reasoning are"
    )
    cached_input_per_million: float | None = omitted(
        "for prompt tokens that the endpoint reads from its cache; input_per_million when not given",
        ge=0,
        le=MOST_DOLLARS,
    )
    cache_write_per_million: float | None = omitted(
        "for prompt tokens that the endpoint writes to its cache; input_per_million when not given",
        ge=0,
        le=MOST_DOLLARS,
    )
    batch_factor: float = Field(
        HALF_PRICE,
        gt=0,
        le=1,
        exclude_if=lambda value: value == HALF_PRICE,
        description="what a call in a batch costs, as a share of what it costs outside",
    )

    def cost(
        self,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
        *,
        in_batch: bool = False,
    ) -> float:
        """US dollars for so many tokens.

        Args:
            prompt_tokens: all of the prompts, also those that are cached or written to a cache.
            completion_tokens: all of the answers, also those of reasoning.
            cached_tokens: of the prompts, read from the endpoint's cache.
            cache_write_tokens: of the prompts, written to the endpoint's cache.
            in_batch: whether the calls are made in a batch.
        """
        others = max(0, prompt_tokens - cached_tokens - cache_write_tokens)  # An endpoint may say what cannot be.
        dollars = others * self.input_per_million + completion_tokens * self.output_per_million
        if cached_tokens or cache_write_tokens:
            dollars += cached_tokens * self._cached + cache_write_tokens * self._cache_write
        return self._factor(in_batch) * dollars / 1_000_000

    def total(self, outside_batches: Tokens, in_batches: Tokens) -> float:
        """US dollars for the tokens of calls of both kinds."""
        outside = self.cost(*outside_batches)
        return outside + self.cost(*in_batches, in_batch=True) if any(in_batches) else outside

    def most(self, prompt_tokens: int, completion_tokens: int, *, in_batch: bool = False) -> float:
        """US dollars at most for so many tokens, whatever becomes of the prompts in the endpoint's cache."""
        dearest = max(self.input_per_million, self._cached, self._cache_write)
        tokens = prompt_tokens * dearest + completion_tokens * self.output_per_million
        return self._factor(in_batch) * tokens / 1_000_000

    @property
    def _cached(self) -> float:
        given = self.cached_input_per_million
        return self.input_per_million if given is None else given

    @property
    def _cache_write(self) -> float:
        given = self.cache_write_per_million
        return self.input_per_million if given is None else given

    def _factor(self, in_batch: bool) -> float:
        return self.batch_factor if in_batch else 1.0


class Batch(Closed):
    """Requests are sent as batches of the provider, which take up to a day and cost half."""

    max_wait_s: float = Field(
        86400.0,
        ge=SHORTEST_S,
        le=30 * 86400,
        description="how long a batch is waited for; then it is cancelled, and what it did is taken",
    )
    then: Literal["live", "fail"] = Field(
        "live", description="what becomes of requests that a batch did not answer: they are asked live, or fail"
    )
    poll_s: float = Field(60.0, ge=0.01, le=3600, description="longest time between two looks at a batch")


class ReaderOptions(Closed):
    """What the reader is asked, in a run that has one (`roles.reader`)."""

    template: ReaderTemplate = Field(description="its prompt; {choices} and {answer} stand for what it is shown")


class FailIf(Closed):
    """Gates: conditions on the result, of which `coverage_below` makes the run exit with 3, `failed_above` with 2."""

    coverage_below: float | None = Field(None, ge=0, le=1, description="any cell's share of scored samples")
    failed_above: float = Field(
        0.05, ge=0, le=1, description="share of the run's samples that failed, other than by their item; 1 never fails"
    )
