"""What calls cost: by hand, for what endpoints count, and held against a budget."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_lines import answered, failed, opened, rid
from pydantic import ValidationError

from rambla_ray.actors.ledger import LedgerService
from rambla_ray.actors.ledger_budget import BudgetMeter, Holding
from rambla_ray.actors.ledger_costs import FRAME_TOKENS
from rambla_ray.config.load import load
from rambla_ray.config.sections import Budget, Price
from rambla_ray.ledger.claims import Claim
from rambla_ray.ledger.record import Record
from rambla_ray.ledger.spent import Spent
from rambla_ray.results.calls import calls_document
from rambla_ray.schema import CallTrace, ReplyDetails

RUN, KEY = "run", ("m", "target")
GPT = {"input_per_million": 1.25, "cached_input_per_million": 0.125, "output_per_million": 10}
CLAUDE = {
    "input_per_million": 5,
    "cached_input_per_million": 0.5,
    "cache_write_per_million": 6.25,
    "output_per_million": 25,
}
PLAIN = {"input_per_million": 1.25, "output_per_million": 10}


@pytest.mark.parametrize(
    ("price", "tokens", "dollars"),
    [
        (PLAIN, (10_000, 1_000), 0.0125 + 0.01),
        (PLAIN, (10_000, 1_000, 8_000), 0.0125 + 0.01),  # Cached ones cost like others where nothing else is said.
        (PLAIN, (10_000, 1_000, 8_000, 2_000), 0.0125 + 0.01),
        (GPT, (10_000, 1_000), 0.0125 + 0.01),
        (GPT, (10_000, 1_000, 8_000), 0.0025 + 0.001 + 0.01),  # OpenAI: 10,000 in the prompt, of which 8,000 cached.
        (GPT, (10_000, 1_000, 10_000), 0.00125 + 0.01),
        (GPT, (10_000, 0, 12_000), 0.0015),  # What cannot be: more from the cache than there was.
        # Anthropic: input_tokens 50, cache_read_input_tokens 9,000, cache_creation_input_tokens 950.
        (CLAUDE, (10_000, 400, 9_000, 950), 0.00025 + 0.0045 + 0.0059375 + 0.01),
        (CLAUDE, (0, 0), 0.0),
        ({**GPT, "cached_input_per_million": 0}, (10_000, 1_000, 8_000), 0.0025 + 0.01),
    ],
)
@pytest.mark.parametrize(("factor", "share"), [({}, 0.5), ({"batch_factor": 0.4}, 0.4), ({"batch_factor": 1}, 1.0)])
def test_a_call_costs_what_its_tokens_cost_and_in_a_batch_a_share_of_it(
    price: dict[str, float], tokens: tuple[int, ...], dollars: float, factor: dict[str, float], share: float
) -> None:
    charged = Price(**price, **factor)
    assert charged.cost(*tokens) == pytest.approx(dollars, abs=1e-12)
    assert charged.cost(*tokens, in_batch=True) == pytest.approx(share * dollars, abs=1e-12)


@given(
    price=st.builds(
        Price,
        input_per_million=st.floats(0, 100),
        output_per_million=st.floats(0, 100),
        cached_input_per_million=st.none() | st.floats(0, 100),
        cache_write_per_million=st.none() | st.floats(0, 100),
        batch_factor=st.floats(0.1, 1),
    ),
    parts=st.tuples(*[st.integers(0, 10**5)] * 3),
    completion=st.integers(0, 10**5),
    in_batch=st.booleans(),
)
def test_no_split_of_a_prompt_costs_more_than_the_most(
    price: Price, parts: tuple[int, int, int], completion: int, in_batch: bool
) -> None:
    prompt = sum(parts)
    cost = price.cost(prompt, completion, *parts[1:], in_batch=in_batch)
    assert 0 <= cost <= price.most(prompt, completion, in_batch=in_batch) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_factor", 0),
        ("batch_factor", 1.01),
        ("batch_factor", -0.5),
        ("cached_input_per_million", -1),
        ("cache_write_per_million", 1e10),
        ("cached_input_per_million", float("nan")),
        ("cached_per_million", 1),
    ],
)
def test_a_price_that_cannot_be_is_refused(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=key):
        Price(**PLAIN, **{key: value})


def test_a_price_of_two_numbers_is_stored_as_before_and_so_is_its_run() -> None:
    assert Price(**PLAIN, batch_factor=0.5).model_dump() == PLAIN
    assert Price(**CLAUDE).model_dump() == CLAUDE
    price = "model.price={input_per_million: 1.5, output_per_million: 2}"
    words = ["model=openai_chat", "task=mcqabaseline", "model.params.api_type=openai", price]
    assert load(words).run_id == "openai_chat-mcqabaseline-184ea0c6"


# --- the ledger's sums and calls.json --------------------------------------------------------------------------------

CACHED = ReplyDetails(cached_tokens=80, reasoning_tokens=6)
WRITTEN = ReplyDetails(cached_tokens=30, cache_write_tokens=60)
BATCHED = ReplyDetails(cached_tokens=80, cache_write_tokens=10, reasoning_tokens=4, batch="batch_1")
HEDGED = CallTrace(attempts=2, hedged=1)
RETRIED = CallTrace(0.0, 2, 0, (), 100, 7)  # Its first attempt gave no answer and was charged for.
TOKENS = (100, 10)
DOLLARS = {"input_per_million": 1e6, "cached_input_per_million": 1e5, "cache_write_per_million": 2e6}
DOLLARS |= {"output_per_million": 3e6}  # A token costs 1, 0.1 from the cache, 2 into it, and 3 of an answer.


@pytest.mark.parametrize(
    ("lines", "counts", "usd"),
    [
        ([answered("a", RUN, tokens=TOKENS)], {"prompt_tokens": 100, "completion_tokens": 10}, 100 + 30),
        (
            [answered("a", RUN, tokens=TOKENS, details=CACHED)],
            {"cached_tokens": 80, "cache_write_tokens": 0, "reasoning_tokens": 6, "batched": 0},
            20 + 8 + 30,
        ),
        (
            [answered("a", RUN, tokens=TOKENS, details=WRITTEN)],
            {"prompt_tokens": 100, "cached_tokens": 30, "cache_write_tokens": 60},
            10 + 3 + 120 + 30,
        ),
        (
            [answered("a", RUN, tokens=TOKENS, details=CACHED, trace=HEDGED)],
            {"prompt_tokens": 200, "cached_tokens": 160, "reasoning_tokens": 12, "hedged": 1},
            2 * (20 + 8 + 30),
        ),
        (
            [answered("a", RUN, tokens=TOKENS, details=BATCHED), answered("b", RUN, tokens=TOKENS, details=CACHED)],
            {
                "prompt_tokens": 200,
                "cached_tokens": 160,
                "reasoning_tokens": 10,
                "batched": 1,
                "batched_prompt_tokens": 100,
                "batched_completion_tokens": 10,
                "batched_cached_tokens": 80,
                "batched_cache_write_tokens": 10,
            },
            (10 + 8 + 20 + 30) / 2 + (20 + 8 + 30),
        ),
        (
            [answered("a", RUN, tokens=TOKENS, details=CACHED, trace=RETRIED), failed("b", RUN, (50, 5))],
            {"prompt_tokens": 250, "completion_tokens": 22, "cached_tokens": 80, "failed": 1},
            (20 + 8 + 30) + (100 + 21) + (50 + 15),
        ),
    ],
    ids=["plain", "cached", "written to the cache", "hedged", "one of two in a batch", "failed and charged"],
)
def test_what_a_run_has_spent_is_counted_from_the_ledger_and_priced(
    tmp_path: Path, lines: list[bytes], counts: dict[str, int], usd: float
) -> None:
    ledger = opened(tmp_path, RUN)
    ledger.add(lines)
    ledger.commit()
    for held in (ledger, opened(tmp_path, RUN)):  # While it goes on, and read again.
        spent = held.spent[KEY]
        assert {name: getattr(spent, name) for name in counts} == counts
        meter = BudgetMeter(Budget(usd=10**6), {KEY: Price(**DOLLARS)}, held.spent)
        assert meter.used() == (spent.prompt_tokens + spent.completion_tokens, pytest.approx(usd))
        assert calls_of(spent)["cost_usd"] == pytest.approx(usd)


def calls_of(spent: Spent) -> dict[str, Any]:
    """The entry of calls.json of a model that charges `DOLLARS`."""
    config = load(["model=mock", "task=mcqabaseline", f"model.price={DOLLARS}"])
    counted = {name: getattr(spent, name) for name in Spent.__annotations__}
    entry: dict[str, Any]
    (entry,) = calls_document(config, [{"model": "mock", "role": "target", **counted}], {}, [], {})["models"]
    return entry


# --- the budget ------------------------------------------------------------------------------------------------------

SIZE = (36, 100)  # At most 36 + FRAME_TOKENS + 100 tokens.
MOST = 2 * (36 + FRAME_TOKENS) + 3 * 100  # A prompt that is written to the cache is the dearest.


class Run:
    """A meter, and the ledger's sums that it reads."""

    def __init__(self, usd: float, batched: frozenset[tuple[str, str]] = frozenset()) -> None:
        self.spent: dict[tuple[str, str], Spent] = {}
        self.meter = BudgetMeter(Budget(usd=usd), {KEY: Price(**DOLLARS)}, self.spent, batched)

    def end(self, name: str, details: ReplyDetails, tokens: tuple[int, int] = TOKENS) -> None:
        written = answered(name, RUN, tokens=tokens, details=details)
        self.spent.setdefault(KEY, Spent()).add(Record.from_line(written))
        self.meter.recorded("one", [written])


def test_a_reservation_covers_a_prompt_that_the_endpoint_writes_to_its_cache() -> None:
    reserved = Run(10**6).meter.offer(KEY, SIZE)
    assert reserved is not None
    assert (reserved.usd, reserved.is_trusted) == (MOST, False)


def test_what_the_cache_gave_so_far_is_what_the_next_call_is_likely_to_cost_less() -> None:
    run = Run(MOST + 58 + 59)
    reserved = run.meter.offer(KEY, SIZE)
    assert reserved is not None
    run.meter.hold("one", rid("a"), KEY, (100, 100), reserved)
    run.end("a", CACHED)
    assert run.meter.used()[1] == pytest.approx(58)
    run.meter.hold("one", rid("b"), KEY, SIZE, reserved)
    likely = run.meter.offer(KEY, (100, 100))
    assert likely is not None
    assert (likely.usd, likely.is_trusted) == (pytest.approx(58), True)  # 20 + 80 cached ones, and 10 of an answer.


def test_only_the_first_call_of_a_request_is_reserved_at_the_price_of_a_batch() -> None:
    run = Run(10**6, frozenset({KEY}))
    offers = [run.meter.offer(KEY, SIZE), run.meter.offer(KEY, SIZE, is_first=False)]
    assert [offer and offer.usd for offer in offers] == [MOST / 2, MOST]
    assert Run(6, frozenset({KEY})).meter.shortage(KEY, SIZE) == (
        "the budget of $6 does not bear a single call: one of model m (target) costs about $6.5000"
    )


def test_a_service_that_starts_again_holds_the_full_price_as_it_does_not_know_what_is_in_a_batch() -> None:
    run = Run(MOST, frozenset({KEY}))
    run.meter.restore("one", "m", Holding(rid("a"), "target", SIZE))
    assert run.meter.offer(KEY, SIZE) is None
    run.end("a", BATCHED)
    assert run.meter.used() == (110, pytest.approx((10 + 8 + 20 + 30) / 2))


def test_a_run_lets_out_first_calls_at_the_price_of_a_batch_and_those_beside_them_at_the_full_one(
    tmp_path: Path,
) -> None:
    async def body() -> None:
        budget, prices = Budget(usd=1.5 * MOST + 7), {KEY: Price(**DOLLARS)}
        service = LedgerService(str(tmp_path), RUN, budget, prices, batched=frozenset({KEY}))
        wanted = [(rid(name), "target") for name in "abc"]
        assert await service.claim("one", "m", wanted[:1], [SIZE]) == [Claim.GRANTED]
        assert await service.reserve("one", "m", Holding(rid("a"), "target", SIZE)) is Claim.GRANTED
        # Seven are left, and a call in a batch is likely to cost 6.5. One such is let out at a time.
        assert await service.claim("one", "m", wanted[1:], [SIZE] * 2) == [Claim.GRANTED, Claim.PENDING]
        await service.store("one", [answered("a", RUN, tokens=TOKENS, details=BATCHED)])
        assert (await service.progress())["budget"] == "$34.0000 of $757"

    asyncio.run(body())


def test_what_a_batch_did_not_answer_is_asked_live_as_the_full_price_of_it_fits(tmp_path: Path) -> None:
    async def body() -> None:
        budget, prices = Budget(usd=2 * MOST), {KEY: Price(**DOLLARS)}
        service = LedgerService(str(tmp_path), RUN, budget, prices, batched=frozenset({KEY}))
        names = "abcd"
        assert (
            await service.claim("one", "m", [(rid(name), "target") for name in names], [SIZE] * 4)
            == [Claim.GRANTED] * 4
        )
        ended = {name: Holding(rid(name), "target", SIZE, calls=0) for name in names}
        for holding in ended.values():
            assert not await service.charge("one", holding)
        assert (await service.progress())["budget"] == f"$0.0000 of ${2 * MOST:g}"
        live = [asyncio.create_task(service.reserve("one", "m", holding)) for holding in ended.values()]
        assert [await live[0], await live[1]] == [Claim.GRANTED] * 2
        assert not live[2].done()
        cost = Price(**DOLLARS).cost(*TOKENS)
        for name, place in zip(names, range(4), strict=True):
            assert await live[place] is Claim.GRANTED
            await service.store("one", [answered(name, RUN, tokens=TOKENS)])
        used = await service.progress()
        assert (used["budget"], used["stopped"]) == (f"${4 * cost:.4f} of ${2 * MOST:g}", None)

    asyncio.run(body())
