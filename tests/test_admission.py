"""Who is let in and when, with a governor, in virtual time: every wait and every count is exact."""

from __future__ import annotations

import asyncio
import itertools
import random
from itertools import pairwise, takewhile
from typing import Any

import pytest
import virtual_time
from virtual_time import LocalClient, Timed, now

from rambla_ray.actors.api import engine
from rambla_ray.actors.api.adaptive import CUT, GROWTH, START
from rambla_ray.actors.api.governor_talk import TICK_S
from rambla_ray.actors.api.rate_budget import BURST_S
from rambla_ray.actors.api.retry import RetryPolicy
from rambla_ray.actors.base import RunContext
from rambla_ray.actors.mock import MockParams
from rambla_ray.config.sections import Chaos, Pool, Rate
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Request, Response


@pytest.fixture(autouse=True)
def _one_governor(monkeypatch: pytest.MonkeyPatch) -> None:
    client = LocalClient()
    monkeypatch.setattr(engine, "GovernorClient", lambda scope: client)


def build(kind: type[Timed] = Timed, *, rate: Rate | None = None, at_once: int = 64, latency_s: float = 0.01) -> Timed:
    return kind(MockParams(behaviour="oracle", latency_s=latency_s), Pool(max_concurrency=at_once), rate)


def requests(count: int) -> list[Request]:
    return [
        Request("Is it so?", sample_id=str(number), target="yes", choices=("yes", "no")) for number in range(count)
    ]


async def ask(model: Timed, count: int) -> list[Response]:
    return await asyncio.gather(*map(model.generate, requests(count)))


# Rates


def test_models_that_share_a_key_keep_the_stricter_rate_together_and_use_it() -> None:
    strict, loose = build(rate=Rate(requests_per_minute=600)), build(rate=Rate(requests_per_minute=6000))

    async def both() -> float:
        began = now()
        await asyncio.gather(ask(strict, 15), ask(loose, 15))
        return began

    began = virtual_time.run(both())
    times = sorted(strict.began + loose.began)
    assert len(times) == 30
    for count, time in enumerate(times):
        assert count <= 10 * (time - began + BURST_S) + 1e-6
    assert times[-1] - began <= 2.9 + 0.1  # 29 intervals; the governor's talk takes its own milliseconds


# Pauses


class Limited(Timed):
    """Its first call is answered with 429 and a wait; `told_at` is when."""

    told_at = 0.0

    async def reply(self, request: Request) -> Response:
        response = await super().reply(request)
        if not self.told_at:
            self.told_at = now()
            raise CallError(ErrorKind.RATE_LIMITED, "not now", retry_after_s=3)
        return response


def test_a_wait_that_one_model_is_told_holds_for_all_that_share_its_key() -> None:
    limited, free = build(Limited), build()

    async def both() -> None:
        first = asyncio.create_task(limited.generate(Request("limited")))
        while not first.done():
            await free.generate(Request("free"))
        assert (await first).trace.attempts == 2

    virtual_time.run(both())
    # The other model knows of it after its next report, at least one each TICK_S, and a call may be in flight then.
    later = [time - limited.told_at for time in limited.began + free.began if time > limited.told_at + TICK_S + 0.01]
    assert len(later) >= 2  # the limited one, and the free one's next
    assert min(later) >= 3.0
    assert max(later - before for before, later in pairwise(free.began)) >= 3.0 - TICK_S - 0.01


@pytest.mark.parametrize("rate", [Rate(), Rate(requests_per_minute=6000)])
def test_nothing_is_asked_while_an_answer_is_not_durable(rate: Rate) -> None:
    """As when the ledger cannot be reached: the slots that calls leave stay empty until it can."""
    held = False
    model = build(rate=rate, at_once=2, latency_s=0.2)
    model.attach(RunContext(print, Chaos(), lambda: held))

    async def scenario() -> int:
        nonlocal held
        asked = [asyncio.create_task(model.generate(request)) for request in requests(6)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        held = True
        await asyncio.wait(asked, timeout=10.0)  # time for all of them, if they were let in
        before = len(model.began)
        held = False
        model.resume()
        await asyncio.gather(*asked)
        return before

    assert 2 <= virtual_time.run(scenario()) <= 4
    assert len(model.began) == 6


# How many calls are in flight


def test_without_a_rate_calls_in_flight_grow_to_what_the_pool_allows() -> None:
    model = build(at_once=512, latency_s=0.2)
    responses = virtual_time.run(ask(model, 2000))
    assert {response.trace.attempts for response in responses} == {1}
    assert model.most_in_flight == 512


class Crowded(Timed):
    """An endpoint that works on ten calls at once and answers all others with 429; either takes its latency."""

    takes = 10
    retry = RetryPolicy(first_pause_s=0.01, longest_pause_s=0.05)
    answered = working = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.refused_after: list[int] = []  # for each 429, the answers before it

    async def reply(self, request: Request) -> Response:
        if self.working >= self.takes:
            self.refused_after.append(self.answered)
            await super().reply(request)
            raise CallError(ErrorKind.RATE_LIMITED, "too many calls at once")
        self.working += 1
        response = await super().reply(request)
        self.working -= 1
        self.answered += 1
        return response


@pytest.mark.parametrize("seed", range(5))
def test_calls_in_flight_settle_at_what_the_endpoint_takes(seed: int) -> None:
    random.seed(seed)  # of the pauses between attempts
    model, count, latency_s = build(Crowded, at_once=512, latency_s=0.02), 600, 0.02
    responses = virtual_time.run(ask(model, count))
    assert {response.text for response in responses} == {"yes"}
    # Before: the limit comes down from START by cuts. A cut needs a 429 to a call that began after the last one, so
    # each limit lasts two rounds of calls at most, and a round of `takes` answers has the calls beyond them refused.
    limits = list(takewhile(lambda limit: limit > model.takes, (START * CUT**cuts for cuts in itertools.count())))
    settled_after = 2 * len(limits) * model.takes
    before = [answers for answers in model.refused_after if answers <= settled_after]
    assert len(before) <= 2 * sum(limit - model.takes for limit in limits)
    # After: 429s come when the limit has grown to one call more than the endpoint takes, and it is below two more when
    # that is known. A cut leaves CUT of it, and each answer adds GROWTH.
    after = [answers for answers in model.refused_after if answers > settled_after]
    apart = (model.takes + 1 - CUT * (model.takes + 2)) / GROWTH
    assert len(after) > 1
    assert all(later - earlier >= apart for earlier, later in pairwise(after))
    assert model.began[-1] - model.began[0] <= count / model.takes * latency_s / 0.85  # of its time it has work
