"""The mock: what each behaviour answers, that draws belong to the sample, and what its identity tells apart."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from typing import Any

import pytest
from pause_clock import PauseClockPolicy

from rambla_ray.actors.api.rate_budget import BURST_S
from rambla_ray.actors.api.retry import RetryPolicy
from rambla_ray.actors.base import RunContext
from rambla_ray.actors.mock import MockModel, MockParams
from rambla_ray.config.sections import Chaos, Pool, Rate
from rambla_ray.errors import CallError, Draining, ErrorKind
from rambla_ray.schema import Identity, Request, Response

CHOICES = ("yes", "no", "unknown")
MANY = [
    Request("Is it so?", sample_id=f"sample-{number}", target=CHOICES[number % 3], choices=CHOICES)
    for number in range(2000)
]
A, B = MANY[0], replace(MANY[0], sample_id="another sample")


def mock(**params: Any) -> MockModel:
    return MockModel(MockParams(**params), Pool(), None)


async def gathered(model: MockModel, requests: list[Request]) -> list[Any]:
    return await asyncio.gather(*map(model.generate, requests), return_exceptions=True)


def ask(model: MockModel, requests: list[Request]) -> list[Any]:
    return asyncio.run(gathered(model, requests))


def texts(model: MockModel, requests: list[Request]) -> list[str]:
    return [response.text for response in ask(model, requests)]


def test_oracle_gives_the_right_answer() -> None:
    assert texts(mock(behaviour="oracle"), MANY) == [request.target for request in MANY]


def test_constant_gives_its_answer_whatever_is_right() -> None:
    assert set(texts(mock(behaviour="constant", answer="maybe"), MANY)) == {"maybe"}


@pytest.mark.parametrize("flip", [0.0, 0.3, 1.0])
def test_flip_is_wrong_as_often_as_it_says_and_always_with_another_choice(flip: float) -> None:
    said = texts(mock(behaviour="flip", flip=flip), MANY)
    wrong = sum(text != request.target for text, request in zip(said, MANY, strict=True))
    assert wrong / len(MANY) == pytest.approx(flip, abs=0.03 if 0 < flip < 1 else 0)
    assert set(said) == set(CHOICES)


def test_format_gives_the_right_answer_in_many_wordings() -> None:
    said = texts(mock(behaviour="format"), MANY)
    assert all(request.target in text.lower() for text, request in zip(said, MANY, strict=True))
    assert len({text for text, request in zip(said, MANY, strict=True) if request.target == "yes"}) == 8


def test_a_request_without_choices_gets_the_end_of_its_prompt_back() -> None:
    words = [f"word{number}" for number in range(50)]
    assert texts(mock(behaviour="constant"), [Request(" ".join(words))]) == [" ".join(words[-40:])]


@pytest.mark.parametrize("behaviour", ["oracle", "constant", "flip", "format"])
def test_answers_belong_to_the_sample_whatever_the_order(behaviour: str) -> None:
    forwards = texts(mock(behaviour=behaviour, flip=0.5), MANY[:100])
    backwards = texts(mock(behaviour=behaviour, flip=0.5), MANY[99::-1])
    assert forwards == backwards[::-1]


def test_another_seed_makes_other_draws() -> None:
    assert texts(mock(flip=0.5, seed=1), MANY) != texts(mock(flip=0.5, seed=2), MANY)


def test_error_rate_is_the_share_of_samples_that_fail_and_they_fail_again() -> None:
    first, second = (ask(mock(behaviour="oracle", error_rate=0.3), MANY) for _ in range(2))
    failed = [isinstance(result, CallError) and result.kind == ErrorKind.SERVER for result in first]
    assert sum(failed) / len(MANY) == pytest.approx(0.3, abs=0.03)
    assert failed == [isinstance(result, CallError) for result in second]
    assert [r.text for r in first if isinstance(r, Response)] == [
        request.target for request, lost in zip(MANY, failed, strict=True) if not lost
    ]


def test_a_prompt_beyond_the_context_is_too_long() -> None:
    fits, too_long = ask(mock(behaviour="constant", context_tokens=10), [Request("x" * 43), Request("x" * 44)])
    assert fits.prompt_tokens == 10
    assert too_long.kind == ErrorKind.TOO_LONG


def test_latency_is_waited_and_told() -> None:
    (response,) = ask(mock(behaviour="oracle", latency_s=0.01), [A])
    assert response.latency_s >= 0.01


def same_request(model: MockModel, one: Request, other: Request) -> bool:
    ids = Identity(model.identity())
    return ids.request_id(model.request_identity(one)) == ids.request_id(model.request_identity(other))


@pytest.mark.parametrize("params", [{"behaviour": "constant"}, {"behaviour": "oracle"}])
def test_samples_that_must_get_the_same_answer_share_a_request(params: dict[str, Any]) -> None:
    assert same_request(mock(**params), A, B)


@pytest.mark.parametrize(
    "params",
    [{"behaviour": "flip"}, {"behaviour": "format"}, {"behaviour": "constant", "error_rate": 0.1}],
)
def test_samples_that_may_get_different_answers_do_not_share_a_request(params: dict[str, Any]) -> None:
    assert not same_request(mock(**params), A, B)


def test_texts_for_a_next_stage_are_shared_by_samples_since_no_draw_touches_them() -> None:
    one = Request("Rephrase this.", sample_id="a", target="yes")
    other = replace(one, sample_id="b", target="no")
    assert texts(mock(behaviour="flip"), [one]) == texts(mock(behaviour="flip"), [other])
    assert same_request(mock(behaviour="flip"), one, other)


def test_the_right_answer_is_part_of_the_request_only_where_it_is_looked_at() -> None:
    other = replace(A, target="no")
    assert same_request(mock(behaviour="constant"), A, other)
    assert not same_request(mock(behaviour="oracle"), A, other)


def test_identity_holds_what_changes_answers_and_not_the_latency() -> None:
    assert mock().identity() == mock(latency_s=1).identity()
    for change in ({"seed": 1}, {"flip": 0.9}, {"answer": "no"}, {"error_rate": 0.5}, {"behaviour": "oracle"}):
        assert mock().identity() != mock(**change).identity(), change


# What it shares with the models behind endpoints


class QuickMock(MockModel):
    retry = PauseClockPolicy(attempts=30, first_pause_s=0.001, longest_pause_s=0.01)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("http429", ErrorKind.RATE_LIMITED),
        ("http500", ErrorKind.SERVER),
        ("reset", ErrorKind.CONNECTION),
        ("garbage", ErrorKind.GARBAGE),
    ],
)
def test_chaos_that_stays_ends_as_what_it_is(fault: str, kind: ErrorKind) -> None:
    model = QuickMock(MockParams(), Pool(), Rate(give_up_after_s=0.5))
    model.attach(RunContext(print, Chaos(**{fault: 1.0})))
    (failed,) = ask(model, [A])
    assert failed.kind == kind
    assert failed.trace.attempts == len(failed.trace.tries) > 1
    assert all(attempt.reason == f"{kind}: made up by chaos.{fault}" for attempt in failed.trace.tries)


def test_answers_are_the_same_through_chaos() -> None:
    model = QuickMock(MockParams(), Pool(), None)
    model.attach(RunContext(print, Chaos(http429=0.1, http500=0.1, reset=0.1, garbage=0.1)))
    through_chaos = ask(model, MANY[:300])
    assert [response.text for response in through_chaos] == texts(mock(), MANY[:300])
    assert sum(response.trace.attempts for response in through_chaos) > 350


def test_chaos_that_is_no_fault_of_a_call_leaves_calls_alone() -> None:
    model = mock()
    model.attach(RunContext(print, Chaos(kill_actor_every=2)))
    assert {response.trace.attempts for response in ask(model, MANY[:100])} == {1}


def test_the_deadline_holds() -> None:
    class Once(MockModel):
        retry = RetryPolicy(attempts=1)

    (failed,) = ask(Once(MockParams(latency_s=60), Pool(), Rate(timeout_s=0.05)), [A])
    assert (failed.kind, failed.message) == (ErrorKind.TIMEOUT, "no reply from mock within 0.05 s")


def test_a_rate_holds() -> None:
    began = time.monotonic()
    model = MockModel(MockParams(), Pool(), Rate(requests_per_minute=1200))
    assert [response.text for response in ask(model, MANY[:40])] == texts(mock(), MANY[:40])
    assert time.monotonic() - began >= 39 * 0.05 - BURST_S


def test_no_more_requests_are_in_flight_than_the_pool_allows() -> None:
    class Watched(MockModel):
        now = most = 0

        async def call(self, request: Request) -> Response:
            self.now += 1
            self.most = max(self.most, self.now)
            response = await super().call(request)
            self.now -= 1
            return response

    model = Watched(MockParams(latency_s=0.001), Pool(max_concurrency=5), None)
    ask(model, MANY[:50])
    assert model.most == 5


def test_a_cancelled_request_gives_its_slot_back() -> None:
    async def cancelled_then_asked() -> Response:
        model = MockModel(MockParams(latency_s=0.01), Pool(max_concurrency=1), None)
        waiting = [asyncio.create_task(model.generate(request)) for request in MANY[:3]]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return await model.generate(A)

    assert asyncio.run(cancelled_then_asked()).trace.attempts == 1


class Drained(MockModel):
    """One whose run is stopped while its first call is out."""

    async def call(self, request: Request) -> Response:
        asyncio.get_running_loop().call_soon(self.drain)
        return await super().call(request)


def test_when_the_run_is_stopped_what_is_out_is_answered_and_nothing_else_is_asked() -> None:
    model = Drained(MockParams(behaviour="oracle", latency_s=0.01), Pool(max_concurrency=1), None)
    answered, *others = ask(model, MANY[:3])
    assert answered.text == MANY[0].target
    assert [type(other) for other in [*others, *ask(model, [A])]] == [Draining] * 3


def test_when_the_run_is_stopped_nothing_waits_to_be_asked_again() -> None:
    class Limited(Drained):
        async def call(self, request: Request) -> Response:
            await super().call(request)
            raise CallError(ErrorKind.RATE_LIMITED, "not now", retry_after_s=600)

    (drained,) = ask(Limited(MockParams(), Pool(), None), [A])
    assert isinstance(drained, Draining)


@pytest.mark.parametrize("behaviour", ["oracle", "flip", "format"])
def test_its_answer_is_the_likeliest_choice(behaviour: str) -> None:
    requests = [replace(request, continuations=CHOICES) for request in MANY[:200]]
    for request, response in zip(requests, ask(mock(behaviour=behaviour), requests), strict=True):
        logprobs = response.details.choice_logprobs
        assert response.text == CHOICES[logprobs.index(max(logprobs))]
        assert math.fsum(map(math.exp, logprobs)) == pytest.approx(1)
        assert behaviour == "flip" or response.text == request.target


def test_an_answer_that_is_no_choice_has_no_likelihood() -> None:
    (error,) = ask(mock(behaviour="constant", answer="never"), [replace(A, continuations=CHOICES)])
    assert error.kind is ErrorKind.BAD_REQUEST
