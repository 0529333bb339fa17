"""What a run is likely to take, beside what it takes at most: calls, tokens, dollars and seconds of each pool.

Lengths of answers, and how long a call takes, are those of the ledger where it has answers of the model; else the
usual ones below, in which no thinking is counted. What the ledger holds already costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rambla_ray.config.run import RunConfig
from rambla_ray.ledger.look import Lengths, Look
from rambla_ray.results.earlier_speed import Speed
from rambla_ray.run.placement import Level
from rambla_ray.run.pool_calls import NOBODY, Kind, PoolCalls
from rambla_ray.schema import Role

# The usual lengths, in tokens, where nothing is known of a model's answers.
CHOICE_TOKENS = 10  # One of a task's choices, with the words around it.
REPHRASED_TOKENS = 50  # What the rephraser writes: a sentence or two.
TEXT_TOKENS = 200  # Any other text, or a quarter of the longest answer where that is less.
READ_SHARE = 0.05  # Of answers, those that the rules cannot read and the reader is asked about.


@dataclass(frozen=True, slots=True)
class Length:
    """How long an answer is: what is expected, what is possible, and whether the ledger says so."""

    tokens: float
    most: int
    is_seen: bool


class Forecast:
    """What the pools of one stream are expected to take.

    Args:
        levels: the pools.
        calls: of each, what it will be asked.
        look: what the ledger holds.
    """

    def __init__(self, levels: Sequence[Level], calls: Sequence[PoolCalls], look: Look) -> None:
        self._levels, self._calls, self._look = levels, calls, look

    def describe(self, place: int, speed: Speed | None) -> dict[str, Any]:
        """What plan.json says of a pool, beside who it is; see docs/run_directory.md.

        Args:
            place: of the pool in the stream.
            speed: of a local model in an earlier run, where there was one.
        """
        level, calls = self._levels[place], self._calls[place]
        certain, later, tokens = calls.counted()
        known: dict[str, Any] = {"unique_calls": certain, "later_calls_at_most": later}
        if calls.repeated:
            known["repeated_calls"] = calls.repeated
        known["prompt_tokens"] = tokens
        if level.config.price:
            tokens += sum(n * self._length(*part).most for part, n in calls.open.parts.items())
            answers = (certain + later) * level.config.params.longest_answer
            known["cost_usd_at_most"] = level.config.price.most(tokens, answers)
        if calls.in_ledger is not None:
            known["in_ledger"] = len(calls.in_ledger.without(NOBODY).numbers)
            if not self._look.is_whole:
                known["in_ledger_at_least"] = True
        return known | self._expected(place, speed)

    def _expected(self, place: int, speed: Speed | None) -> dict[str, Any]:
        level, kinds = self._levels[place], self._calls[place].left_by_kind
        lengths = {kind: self._length(place, kind) for kind in kinds}
        asked = sum(count * _share(kind) for kind, count in kinds.items())
        prompts = self._prompt_tokens(self._calls[place]) * (asked / max(1, kinds.total()))
        answers = sum(count * _share(kind) * lengths[kind].tokens for kind, count in kinds.items())
        expected: dict[str, Any] = {
            "calls_expected": round(asked),
            "prompt_tokens_expected": round(prompts),
            "completion_tokens_expected": round(answers),
            "lengths_from": "ledger" if all(length.is_seen for length in lengths.values()) else "usual",
        }
        if level.config.price:
            in_batch = level.config.batch is not None
            cost = level.config.price.cost(round(prompts), round(answers), in_batch=in_batch)
            expected["cost_usd_expected"] = round(cost, 6)
        return expected | self._seconds(place, asked, prompts + answers, speed)

    def _prompt_tokens(self, calls: PoolCalls) -> float:
        return calls.left_tokens + sum(n * self._length(*part).tokens for part, n in calls.left_open.parts.items())

    def _length(self, place: int, kind: Kind) -> Length:
        """How long an answer of a pool is."""
        params = self._levels[place].config.params
        if kind.form in ("score", "likelihood"):
            tokens = kind.choices if params.is_charged else 0  # An endpoint charges for one beside each choice.
            return Length(tokens, tokens, is_seen=True)
        most = params.longest_answer or TEXT_TOKENS
        if (own := self._own_lengths(place, kind)).answers:
            return Length(own.mean_tokens, most, is_seen=True)
        usual = _usual_tokens(kind, most)
        named = self._look.lengths.get((self._levels[place].name, kind.role), Lengths())
        is_only_kind = len({each.form for each in self._calls[place].left_by_kind if each.role == kind.role}) == 1
        if named.answers and is_only_kind:
            return Length(named.mean_tokens, most, is_seen=True)
        return Length(min(most, named.mean_reasoning + usual), most, is_seen=False)

    def _own_lengths(self, place: int, kind: Kind) -> Lengths:
        """Those of answers of the kind that the ledger holds to this plan's own requests."""
        return self._calls[place].lengths.get(
            kind._replace(form="choice" if kind.form == "reading" else kind.form), Lengths()
        )

    def _seconds(self, place: int, asked: float, tokens: float, speed: Speed | None) -> dict[str, Any]:
        """How long the pool takes by itself, and by what that is known; empty where it is not known."""
        level = self._levels[place]
        pool, rate = level.config.pool, level.config.rate
        if not asked:
            return {"seconds_expected": 0.0, "seconds_from": "ledger"}
        if level.config.batch:
            return {"seconds_at_most": level.config.batch.max_wait_s}
        if level.config.params.is_local:
            if speed is None:
                return {}
            seconds = speed.load_s + asked * speed.request_s / pool.min_size
            return {"seconds_expected": round(seconds, 1), "seconds_from": "an earlier run"}
        by = {
            "requests_per_minute": 60 * asked / rate.requests_per_minute if rate.requests_per_minute else 0.0,
            "tokens_per_minute": 60 * tokens / rate.tokens_per_minute if rate.tokens_per_minute else 0.0,
            "latency": asked * self._latency_s(place) / (pool.max_concurrency * pool.min_size),
        }
        slowest = max(by, key=by.__getitem__)
        return {"seconds_expected": round(by[slowest], 1), "seconds_from": slowest} if by[slowest] else {}

    def _latency_s(self, place: int) -> float:
        """Seconds of a call, as the ledger has them; 0 where it has no answer."""
        own = [lengths for lengths in self._calls[place].lengths.values() if lengths.answers]
        named = [self._look.lengths.get((self._levels[place].name, role)) for role in self._levels[place].roles]
        seen = own or [lengths for lengths in named if lengths is not None]
        return max((lengths.mean_latency_s for lengths in seen), default=0.0)


def _usual_tokens(kind: Kind, most: int) -> float:
    """How long an answer of a kind is where nothing is known, the longest having so many tokens."""
    if kind.form != "text":
        return CHOICE_TOKENS
    return min(REPHRASED_TOKENS if kind.role == Role.REPHRASER else TEXT_TOKENS, most / 4)


def _share(kind: Kind) -> float:
    """How many of the calls that are possible are made."""
    return READ_SHARE if kind.form == "reading" else 1.0


def total(streams: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The whole run in numbers, from the described pools of its targets.

    Targets are asked side by side: of pools that call endpoints the slowest counts, what local models take adds up.
    How long a pool that asks in batches takes is not known, nor is then how long the run does.
    """
    pools = [pool for stream in streams for pool in stream]
    added = ("calls_expected", "prompt_tokens_expected", "completion_tokens_expected")
    unique = sum(pool["unique_calls"] - pool.get("repeated_calls", 0) for pool in pools)
    summed: dict[str, Any] = {
        "unique_calls": unique,
        "calls_at_most": unique + sum(pool["later_calls_at_most"] for pool in pools),
        **{key: sum(pool[key] for pool in pools) for key in added},
    }
    for key in ("cost_usd_expected", "cost_usd_at_most"):
        if costs := [pool[key] for pool in pools if key in pool]:
            summed[key] = round(sum(costs), 6)
    if all("seconds_expected" in pool for pool in pools):
        local = sum(pool["seconds_expected"] for pool in pools if pool["is_local"])
        summed["seconds_expected"] = round(max(local, *(pool["seconds_expected"] for pool in pools)), 1)
    return summed


def budget_note(config: RunConfig, whole: Mapping[str, Any]) -> str:
    """A line where the run's budget is less than what it is expected to take; empty where it is not."""
    budget = config.options.budget
    cost = whole.get("cost_usd_expected", 0.0)
    tokens = whole["prompt_tokens_expected"] + whole["completion_tokens_expected"]
    if budget.usd is not None and cost > budget.usd:
        return f"budget.usd={budget.usd:g} is below the ${cost:.2f} that the run is expected to cost"
    if budget.tokens is not None and tokens > budget.tokens:
        return f"budget.tokens={budget.tokens} is below the {tokens} that the run is expected to take"
    return ""
