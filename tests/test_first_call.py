"""The first call of an actor that is charged goes alone, so that what is wrong with every call costs one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import virtual_time
from virtual_time import LocalClient, Timed, now

from rambla_ray.actors.api import engine
from rambla_ray.actors.api.admission import FIRST_CALL_S
from rambla_ray.actors.api.retry import RetryPolicy
from rambla_ray.actors.base import RunContext
from rambla_ray.actors.mock import MockParams
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import CallError, Draining, ErrorKind
from rambla_ray.schema import Request, Response

FAST = Rate(requests_per_minute=60_000)  # So many calls may go at once that nobody finds out how many.


class ChargedParams(MockParams):
    is_charged = True


class Charged(Timed):
    """An endpoint that is paid for. Its first call ends in `first_error`, if there is one."""

    Params = ChargedParams
    retry = RetryPolicy(first_pause_s=0.01, longest_pause_s=0.02)
    first_error: ErrorKind | None = None

    async def reply(self, request: Request) -> Response:
        is_first = len(self.began) == 1
        response = await super().reply(request)
        if is_first and self.first_error:
            raise CallError(self.first_error, "not so")
        return response


class Free(Charged):
    Params = MockParams


@pytest.fixture(autouse=True)
def _one_governor(monkeypatch: pytest.MonkeyPatch) -> None:
    client = LocalClient()
    monkeypatch.setattr(engine, "GovernorClient", lambda scope: client)


def build(
    kind: type[Charged] = Charged, *, latency_s: float = 0.5, rate: Rate | None = None, **context: Any
) -> Charged:
    params = kind.Params(behaviour="oracle", latency_s=latency_s)
    model = kind(params, Pool(max_concurrency=64), rate)
    model.attach(RunContext(lambda line: None, **context))
    return model


async def ask(model: Charged, count: int) -> list[Any]:
    requests = [Request("Is it so?", sample_id=str(n), target="yes", choices=("yes", "no")) for n in range(count)]
    return await asyncio.gather(*map(model.generate, requests), return_exceptions=True)


def waits(model: Charged) -> list[float]:
    """When calls began, in seconds after the first."""
    return [round(at - model.began[0], 2) for at in sorted(model.began)]


@pytest.mark.parametrize(
    ("latency_s", "others_after"), [(0.5, 0.5), (30.0, FIRST_CALL_S)], ids=["its end", "two seconds"]
)
@pytest.mark.parametrize("rate", [None, FAST])
def test_the_others_wait_for_the_first_to_end_or_for_two_seconds(
    latency_s: float, others_after: float, rate: Rate | None
) -> None:
    model = build(latency_s=latency_s, rate=rate)
    virtual_time.run(ask(model, 20))
    first, *others = waits(model)
    assert first == 0
    assert len(others) == 19
    assert all(others_after <= at < others_after + 0.3 for at in others)


def test_calls_after_that_wait_for_nobody() -> None:
    async def twice(model: Charged) -> float:
        await ask(model, 1)
        began = now()
        await ask(model, 20)
        return now() - began

    model = build(rate=FAST)
    assert virtual_time.run(twice(model)) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("kind", [ErrorKind.AUTH, ErrorKind.UNSUPPORTED, ErrorKind.NOT_FOUND, ErrorKind.QUOTA])
def test_an_error_that_no_other_call_would_escape_costs_one(kind: ErrorKind) -> None:
    model = build()
    model.first_error = kind
    ends = virtual_time.run(ask(model, 64))
    assert {end.kind for end in ends} == {kind}
    assert len(model.began) == 1


@pytest.mark.parametrize("kind", [ErrorKind.SERVER, ErrorKind.BAD_REQUEST, ErrorKind.RATE_LIMITED])
def test_after_any_other_end_all_go(kind: ErrorKind) -> None:
    model = build()
    model.first_error = kind
    ends = virtual_time.run(ask(model, 20))
    assert sum(isinstance(end, Response) for end in ends) == (19 if kind is ErrorKind.BAD_REQUEST else 20)


@pytest.mark.parametrize(("kind", "stops"), [(Free, True), (Charged, False)], ids=["not charged", "served"])
def test_nobody_waits_where_there_is_nothing_to_save(kind: type[Charged], stops: bool) -> None:
    model = build(kind, stops=stops)
    virtual_time.run(ask(model, 20))
    assert waits(model)[-1] < 0.1


def test_those_that_wait_for_the_first_are_let_go_when_the_run_is_stopped() -> None:
    async def drained(model: Charged) -> tuple[list[Any], float]:
        asked = asyncio.create_task(ask(model, 20))
        await asyncio.sleep(0.2)
        model.drain()
        return await asked, now() - model.began[0]

    model = build()
    ends, took_s = virtual_time.run(drained(model))
    assert len(model.began) == 1
    assert [type(end) for end in ends] == [Response, *[Draining] * 19]
    assert took_s < 0.6


def test_where_the_first_is_cancelled_the_next_goes() -> None:
    async def cancelled(model: Charged) -> list[Any]:
        first = asyncio.create_task(ask(model, 1))
        await asyncio.sleep(0.1)
        others = asyncio.create_task(ask(model, 5))
        await asyncio.sleep(0.1)
        first.cancel()
        return await others

    model = build(rate=FAST)
    assert len(virtual_time.run(cancelled(model))) == 5
    assert waits(model)[1:] == pytest.approx([0.2] * 5, abs=0.1)
