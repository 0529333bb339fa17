"""The rate budget, on a simulated clock: as much as is allowed, and never more."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import BEGAN

from rambla_ray.actors.api.rate_budget import BURST_S, HORIZON_S, Limits, RateBudget


@dataclass
class Callers:
    """Callers that each ask, send when they may, get their reply after `latency_s`, and ask again."""

    budget: RateBudget
    count: int
    latency_s: float = 0.5
    estimate: int = 0
    used: int = 0

    def send_for(self, seconds: float, since: float = BEGAN, used: Iterator[int] | None = None) -> list[float]:
        """When requests were sent, in order, by asking from `since` on for `seconds`."""
        order = itertools.count()
        events = [(since, next(order), False) for _ in range(self.count)]
        sent: list[float] = []
        while events and events[0][0] < since + seconds:
            now, _, replied = heapq.heappop(events)
            if replied:
                self.budget.correct(self.estimate, next(used) if used else self.used)
            granted, wait = self.budget.reserve(self.estimate, now)
            assert wait >= 0
            if granted:
                sent.append(now + wait)
                heapq.heappush(events, (now + wait + self.latency_s, next(order), True))
            else:
                assert wait > 0
                heapq.heappush(events, (now + wait, next(order), False))
        return sorted(time for time in sent if time < since + seconds)


def most_in(times: list[float], seconds: float) -> int:
    """The most events in any window of that length."""
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.parametrize("per_minute", [30, 60, 500, 3000])
@pytest.mark.parametrize("callers", [64, 300])
def test_many_callers_reach_the_rate_and_never_exceed_it(per_minute: int, callers: int) -> None:
    sent = Callers(RateBudget(Limits(requests_per_minute=per_minute), BEGAN), callers).send_for(60.0)
    assert len(sent) == pytest.approx(per_minute, rel=0.03)
    assert most_in(sent, 10.0) <= per_minute / 60 * (10.0 + BURST_S) + 1


@pytest.mark.parametrize(
    ("estimate", "used"), [(100, 100), (1000, 300), (300, 600), (50, 0)], ids=["exact", "high", "low", "free"]
)
def test_settled_tokens_reach_the_rate_and_do_not_exceed_it(estimate: int, used: int) -> None:
    budget = RateBudget(Limits(tokens_per_minute=60_000, requests_per_minute=3000), BEGAN)
    callers = Callers(budget, 200, estimate=estimate, used=used)
    warm = callers.send_for(30.0)
    assert warm
    sent = callers.send_for(60.0, since=BEGAN + 60.0)
    allowed = min(3000.0, 60_000 / used) if used else 3000.0
    assert len(sent) == pytest.approx(allowed, rel=0.05)


@pytest.mark.parametrize("latency_s", [0.05, 2.0, 10.0])
def test_estimates_that_are_right_on_the_whole_use_the_budget(latency_s: float) -> None:
    budget = RateBudget(Limits(tokens_per_minute=60_000), BEGAN)
    callers = Callers(budget, 200, latency_s, estimate=500)
    used = itertools.cycle([100, 900, 500, 200, 800])
    sent = callers.send_for(300.0, used=used)
    assert len(sent) == pytest.approx(600, rel=0.05)


def test_what_guesses_reserved_too_much_comes_back_without_a_burst() -> None:
    budget = RateBudget(Limits(tokens_per_minute=60_000), BEGAN)
    guesses = [budget.reserve(800, BEGAN)[1] for _ in range(2)]
    assert guesses == [0.0, pytest.approx(0.8)]
    for _ in guesses:
        budget.correct(800, 100)
    waits = [budget.reserve(100, BEGAN + 0.5)[1] for _ in range(3)]
    assert waits == pytest.approx([0.4, 0.5, 0.6])  # after the second guess, 0.1 s for each call


@pytest.mark.parametrize(
    ("rate", "per_second"),
    [
        (Limits(requests_per_minute=60, tokens_per_minute=600_000), 1.0),
        (Limits(requests_per_minute=6000, tokens_per_minute=6000), 1.0),
    ],
    ids=["requests", "tokens"],
)
def test_the_tighter_of_two_limits_binds(rate: Limits, per_second: float) -> None:
    sent = Callers(RateBudget(rate, BEGAN), 50, estimate=100, used=100).send_for(60.0)
    assert len(sent) == pytest.approx(60 * per_second, rel=0.03)


def test_without_limits_nobody_waits() -> None:
    budget = RateBudget(Limits(), BEGAN)
    assert {budget.reserve(10**9, BEGAN) for _ in range(1000)} == {(True, 0.0)}


def test_an_estimate_above_the_budget_is_granted_and_takes_all_of_it() -> None:
    budget = RateBudget(Limits(tokens_per_minute=1000), BEGAN)
    assert budget.reserve(50_000, BEGAN) == (True, 0.0)
    assert Callers(budget, 1, estimate=50_000, used=50_000).send_for(200.0) == pytest.approx(
        [BEGAN + 60, BEGAN + 120, BEGAN + 180]
    )


def test_what_an_estimate_took_too_much_comes_back() -> None:
    budget = RateBudget(Limits(tokens_per_minute=600), BEGAN)
    assert budget.reserve(300, BEGAN) == (True, 0.0)
    granted, wait = budget.reserve(1, BEGAN)
    assert (granted, wait) == (False, pytest.approx(30.0 - HORIZON_S / 2))
    budget.correct(300, 5)
    assert budget.reserve(1, BEGAN) == (True, pytest.approx(0.5))


@pytest.mark.parametrize("seconds", [0.5, 3.0, 30.0])
@pytest.mark.parametrize(
    "rate", [Limits(requests_per_minute=600), Limits(tokens_per_minute=60_000)], ids=["rpm", "tpm"]
)
def test_a_penalty_holds_everyone_back_and_then_ends(seconds: float, rate: Limits) -> None:
    budget = RateBudget(rate, BEGAN)
    callers = Callers(budget, 50, estimate=100, used=100)
    budget.penalise(seconds, BEGAN)
    sent = callers.send_for(seconds + 30.0)
    assert sent[0] == pytest.approx(BEGAN + seconds, abs=0.01)
    assert len(sent) == pytest.approx(300, rel=0.05)
    assert most_in(sent, 10.0) <= 10 * (10.0 + BURST_S) + 1


def test_a_shorter_penalty_does_not_end_a_longer_one() -> None:
    budget = RateBudget(Limits(requests_per_minute=6000), BEGAN)
    budget.penalise(20.0, BEGAN)
    budget.penalise(1.0, BEGAN)
    granted, wait = budget.reserve(0, BEGAN)
    assert (granted, wait) == (False, pytest.approx(20.0 - HORIZON_S / 2))


def test_a_fresh_budget_grants_no_burst() -> None:
    budget = RateBudget(Limits(requests_per_minute=60), BEGAN)
    assert [budget.reserve(0, BEGAN) for _ in range(3)] == [
        (True, 0.0),
        (True, pytest.approx(1.0)),
        (False, pytest.approx(1.5)),
    ]


def test_an_idle_budget_earns_one_burst_and_no_more() -> None:
    budget = RateBudget(Limits(requests_per_minute=6000), BEGAN)
    at_once = 0
    while budget.reserve(0, BEGAN + 600.0)[1] < 1e-6:
        at_once += 1
    assert at_once == pytest.approx(100 * BURST_S + 1, abs=1)


@settings(max_examples=50, deadline=None)
@given(
    per_minute=st.integers(1, 10_000),
    asked=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 5000), st.floats(0, 3)), max_size=60),
)
def test_no_pattern_of_calls_and_penalties_exceeds_the_rate(
    per_minute: int, asked: list[tuple[float, int, float]]
) -> None:
    budget, now, sent = RateBudget(Limits(requests_per_minute=per_minute), BEGAN), BEGAN, []
    for pause, tokens, penalty in asked:
        now += pause
        if penalty > 2.5:
            budget.penalise(penalty, now)
        granted, wait = budget.reserve(tokens, now)
        if granted:
            assert wait <= HORIZON_S
            sent.append(now + wait)
    for window in (1.0, 10.0, 60.0):
        assert most_in(sorted(sent), window) <= per_minute / 60 * (window + BURST_S) + 1 + 1e-6
