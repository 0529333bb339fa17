"""An endpoint that lets nobody through: its calls wait, one at a time probes, and waiting ends. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import virtual_time
from virtual_time import LocalClient, Timed, now

from rambla_ray.actors.api import engine
from rambla_ray.actors.api.outage import LONGEST_PROBE_S
from rambla_ray.actors.api.retry import RetryPolicy
from rambla_ray.actors.api.waits import LONGEST_WAIT_S
from rambla_ray.actors.base import RunContext
from rambla_ray.actors.mock import MockParams
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import CallError, Draining, ErrorKind
from rambla_ray.schema import Request, Response


@pytest.fixture(autouse=True)
def _one_governor(monkeypatch: pytest.MonkeyPatch) -> None:
    client = LocalClient()
    monkeypatch.setattr(engine, "GovernorClient", lambda scope: client)


FAULTS: dict[str, Callable[[], Exception]] = {
    "refused": lambda: CallError(ErrorKind.CONNECTION, "connection refused", unsent=True),
    "reset": lambda: CallError(ErrorKind.CONNECTION, "connection reset"),
    "503": lambda: CallError(ErrorKind.SERVER, "HTTP 503"),
    "no reply": TimeoutError,
}


class Failing(Timed):
    """An endpoint that answers nobody from `down_at` to `up_at` seconds after the first call."""

    fault = "refused"
    down_at, up_at = 5.0, 35.0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.notes: list[str] = []
        self.attach(RunContext(self.notes.append))
        self.failed_at: list[float] = []

    async def reply(self, request: Request) -> Response:
        response = await super().reply(request)
        since = now() - self.began[0]
        if self.down_at <= since < self.up_at:
            self.failed_at.append(since)
            raise FAULTS[self.fault]()
        return response


def build(
    kind: type[Timed] = Failing, *, rate: Rate | None = None, at_once: int = 16, latency_s: float = 0.2, **given: Any
) -> Any:
    model = kind(MockParams(behaviour="oracle", latency_s=latency_s), Pool(max_concurrency=at_once), rate)
    for name, value in given.items():
        setattr(model, name, value)
    return model


def requests(count: int) -> list[Request]:
    return [
        Request("Is it so?", sample_id=str(number), target="yes", choices=("yes", "no")) for number in range(count)
    ]


async def ask(model: Timed, count: int) -> list[Any]:
    return await asyncio.gather(*map(model.generate, requests(count)), return_exceptions=True)


@pytest.mark.parametrize("rate", [Rate(), Rate(requests_per_minute=3000), Rate(hedge=True)], ids=["", "rate", "hedge"])
@pytest.mark.parametrize("at_once", [1, 4, 64])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_outage_of_half_a_minute_costs_no_answer(fault: str, at_once: int, rate: Rate) -> None:
    model = build(fault=fault, at_once=at_once, rate=rate)
    responses = virtual_time.run(ask(model, max(100, 40 * at_once)))
    lost = [response for response in responses if isinstance(response, CallError)]
    # A request that is asked alone has used up its own attempts before others show that it is none of its own.
    assert len(lost) <= (1 if at_once == 1 and fault != "refused" else 0), lost
    began, ended = model.notes
    assert began.startswith("mock lets nobody through (")
    assert ended.startswith("mock answers again, after ")
    probes = [time for time in model.failed_at if time > model.down_at + 4]
    assert 2 <= len(probes) <= 5  # They come ever more slowly, one at a time.
    assert max(model.began) - model.began[0] > model.up_at


def test_an_endpoint_that_is_down_from_the_start_is_asked_once_at_a_time_until_it_is_there() -> None:
    model = build(down_at=0.0, up_at=20.0, at_once=64)
    responses = virtual_time.run(ask(model, 200))
    assert {response.text for response in responses} == {"yes"}
    assert sum(response.trace.attempts for response in responses) <= 200 + 64 + 5


def test_a_second_outage_is_told_as_that() -> None:
    model = build(at_once=4)

    async def scenario() -> list[Any]:
        responses = await ask(model, 200)
        model.down_at, model.up_at = now() - model.began[0], now() - model.began[0] + 10
        return responses + await ask(model, 20)

    responses = virtual_time.run(scenario())
    assert {response.text for response in responses} == {"yes"}
    assert [note.partition(" (")[0].partition(", after")[0] for note in model.notes] == [
        "mock lets nobody through",
        "mock answers again",
        "mock lets nobody through again, outage 2",
        "mock answers again",
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_an_outage_that_lasts_ends_in_one_error_for_all_and_no_further_call(fault: str) -> None:
    model = build(fault=fault, up_at=1e9, rate=Rate(give_up_after_s=60))

    async def scenario() -> tuple[list[Any], float]:
        began = now()
        responses = await ask(model, 1000)
        return responses, now() - began

    responses, took_s = virtual_time.run(scenario())
    errors = [response for response in responses if isinstance(response, CallError)]
    assert 500 < len(errors) < 1000
    assert {error.kind for error in errors} == {ErrorKind.UNAVAILABLE}
    assert {error.message.partition(":")[0] for error in errors} == {
        "mock has let nobody through for 60 s (rate.give_up_after_s)"
    }
    assert 60 <= took_s - model.down_at <= 60 + LONGEST_PROBE_S


@pytest.mark.parametrize(("in_outage", "calls"), [(True, 3), (False, 1)])
def test_an_outage_ends_no_request_by_the_time_that_it_has_had_for_itself(in_outage: bool, calls: int) -> None:
    made: list[CallError] = []

    async def scenario() -> None:
        policy = RetryPolicy().retrying(began=0.0, give_up_after_s=60.0, sleep=asyncio.sleep, clock=lambda: 61.0)
        async for attempt in policy:
            with attempt:
                if len(made) == 3:
                    return
                made.append(CallError(ErrorKind.CONNECTION, "refused", unsent=True))
                made[-1].in_outage = in_outage
                raise made[-1]

    with nullcontext() if in_outage else pytest.raises(CallError):
        asyncio.run(scenario())
    assert len(made) == calls


def test_after_it_was_given_up_an_endpoint_gets_a_probe_now_and_then_and_others_are_refused_at_once() -> None:
    """As in serving, where requests come after that."""
    model = build(down_at=0.0, up_at=100.0, rate=Rate(give_up_after_s=30))

    async def scenario() -> list[tuple[float, bool]]:
        began, ends = now(), []
        await ask(model, 4)
        while now() - began < 140:
            asked = now()
            (response,) = await ask(model, 1)
            assert now() - asked <= 1.0
            ends.append((asked - began, isinstance(response, Response)))
            await asyncio.sleep(0.5)
        return ends

    ends = virtual_time.run(scenario())
    answered = [at for at, is_answer in ends if is_answer]
    assert 100 - 1 <= answered[0] <= 100 + LONGEST_PROBE_S + 1
    assert all(is_answer for at, is_answer in ends if at > answered[0])
    assert len([at for at in model.failed_at if at > 30]) <= 1 + 70 / LONGEST_PROBE_S


@pytest.mark.parametrize("fault", ["reset", "503", "no reply"])
@pytest.mark.parametrize("count", [1, 6])
def test_requests_that_always_fail_end_as_what_they_are_when_all_others_are_answered(fault: str, count: int) -> None:
    class Poisoned(Failing):
        async def reply(self, request: Request) -> Response:
            if int(request.sample_id) < count:
                raise FAULTS[fault]()
            return await Timed.reply(self, request)

    model = build(Poisoned)
    responses = virtual_time.run(ask(model, 100))
    errors = [response for response in responses if isinstance(response, CallError)]
    assert len(errors) == count
    assert ErrorKind.UNAVAILABLE not in {error.kind for error in errors}
    assert {error.trace.attempts for error in errors} == {RetryPolicy().attempts}


def test_a_run_that_stops_in_an_outage_waits_for_no_probe() -> None:
    model = build(up_at=1e9)

    async def scenario() -> float:
        asked = [asyncio.create_task(model.generate(request)) for request in requests(500)]
        await asyncio.sleep(30)
        began = now()
        model.drain()
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert Draining in {type(end) for end in ends}
        return now() - began

    assert virtual_time.run(scenario()) <= 0.2


class Stuck(Failing):
    """Its first call in the outage takes half a minute, the others find no connection."""

    async def reply(self, request: Request) -> Response:
        if request.sample_id == "0" and now() - self.began[0] > self.down_at and not self.failed_at:
            await asyncio.sleep(30)
            return await Timed.reply(self, request)
        return await super().reply(request)


def test_nobody_is_asked_a_second_time_in_an_outage() -> None:
    model = build(Stuck, rate=Rate(hedge=True), at_once=2, down_at=20.0, up_at=55.0)

    async def scenario() -> list[Any]:
        await ask(model, 40)  # What is slow is known after these.
        await asyncio.sleep(30.0)
        return await ask(model, 2)

    stuck, other = virtual_time.run(scenario())
    assert (stuck.text, stuck.trace.hedged, other.text) == ("yes", 0, "yes")


# Pauses that an endpoint asks for


class Limited(Timed):
    """An endpoint that asks for waits: its first calls are answered with 429."""

    wait_s = 0.0
    times = 1

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.notes: list[str] = []
        self.attach(RunContext(self.notes.append))

    async def reply(self, request: Request) -> Response:
        response = await super().reply(request)
        if len(self.began) <= self.times:
            raise CallError(ErrorKind.RATE_LIMITED, "not now", retry_after_s=self.wait_s)
        return response


class UsedUp(Limited):
    """Its first answer says that nothing remains."""

    async def reply(self, request: Request) -> Response:
        number, response = len(self.began), await Timed.reply(self, request)
        if number <= self.times:
            self.pause(self.wait_s)
        return response


@pytest.mark.parametrize("rate", [Rate(), Rate(requests_per_minute=60000)], ids=["", "rate"])
@pytest.mark.parametrize("kind", [Limited, UsedUp])
@pytest.mark.parametrize(
    ("asked_s", "waited_s", "note"),
    [
        (5.0, 5.0, None),
        (45.0, 45.0, "mock asks for a wait of 45 s, and is not asked until then"),
        (90000.0, LONGEST_WAIT_S, "mock asks for a wait of 90000 s, and is asked again after 300 s"),
    ],
)
def test_a_wait_is_told_once_when_it_is_long_and_ends_after_five_minutes(
    kind: type[Limited], rate: Rate, asked_s: float, waited_s: float, note: str | None
) -> None:
    model = build(kind, rate=rate, at_once=4, wait_s=asked_s, times=4)

    async def scenario() -> list[Any]:
        return await ask(model, 40)

    responses = virtual_time.run(scenario())
    assert {response.text for response in responses} == {"yes"}
    first, *_ = [at - model.began[0] for at in model.began if at - model.began[0] > 1]
    assert waited_s <= first <= waited_s + 2
    assert model.notes == ([note] if note else [])


def test_many_short_waits_without_an_answer_are_told_once_too() -> None:
    model = build(Limited, at_once=1, wait_s=1.0, times=60)
    responses = virtual_time.run(ask(model, 10))
    assert {response.text for response in responses} == {"yes"}
    assert model.notes == ["mock has let nobody through for 30 s: not now"]


@pytest.mark.parametrize("kind", [Limited, UsedUp])
def test_those_that_wait_for_their_first_call_are_given_up_in_time(kind: type[Limited]) -> None:
    model = build(kind, at_once=4, wait_s=90000.0, times=4, rate=Rate(give_up_after_s=100))

    async def scenario() -> tuple[list[Any], float]:
        began = now()
        return await ask(model, 40), now() - began

    responses, took_s = virtual_time.run(scenario())
    refused = [response for response in responses if getattr(response, "kind", "") == ErrorKind.UNAVAILABLE]
    assert len(refused) == 36
    reason = "not now" if kind is Limited else "it asks for a wait of 90000 s"
    assert refused[0].message == f"mock has let nobody through for 100 s (rate.give_up_after_s): {reason}"
    assert 100 <= took_s <= 102


@pytest.mark.parametrize(
    ("rate", "at_once", "latency_s"),
    [(Rate(requests_per_minute=6, give_up_after_s=30), 64, 0.2), (Rate(give_up_after_s=30), 1, 20.0)],
    ids=["a rate of the user's own", "a slot"],
)
@pytest.mark.parametrize("kind", [Timed, Limited])
def test_nobody_is_given_up_who_waits_for_his_turn(
    kind: type[Timed], rate: Rate, at_once: int, latency_s: float
) -> None:
    model = build(kind, rate=rate, at_once=at_once, latency_s=latency_s, wait_s=1.0)

    async def scenario() -> tuple[list[Any], float]:
        began = now()
        return await ask(model, 20), now() - began

    responses, took_s = virtual_time.run(scenario())
    assert {response.text for response in responses} == {"yes"}
    assert took_s > 180
