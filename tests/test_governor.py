"""The governor, on a simulated clock: as much as is allowed, never more, in turns, and everyone waits when told to.

Its death is a real one, in a real cluster.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_server import OpenAIServer, prompt_sha

from rambla_ray.actors.api.adaptive import CUT, FORGET_S, GROWTH, LEASE_S, START, Concurrency, Usage
from rambla_ray.actors.api.governor import LONGEST_PAUSE_S, Governor, Grant, Report
from rambla_ray.actors.api.governor_client import NAMESPACE, governor_name
from rambla_ray.actors.api.rate_budget import BURST_S, HORIZON_S, Limits, RateBudget
from rambla_ray.actors.openai import OpenAIChat
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.schema import Request

BEGAN = 1000.0  # a monotonic clock starts anywhere


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


# The governor: several clients, one budget


@dataclass
class Clock:
    """A clock that is set."""

    now: float = BEGAN

    def __call__(self) -> float:
        return self.now


@dataclass
class Office:
    """A governor, and clients that report to it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.governor = Governor(self.clock)

    def exchange(self, client: str = "a", rate: Limits | None = None, *, most: int = 64, **fields: Any) -> Grant:
        """What the governor answers to a client; one without a rate and usage does not adapt."""
        return self.governor.exchange(Report(client, most, rate or Limits(), **{"usage": None, **fields}))


def permits_in(office: Office, clients: dict[str, Limits], seconds: float) -> Counter[str]:
    """Permits that each client gets that always wants more, and asks when it is told to, each with its own delay."""
    given: Counter[str] = Counter()
    end = office.clock.now + seconds
    asking = [(office.clock.now + place / 1000, client) for place, client in enumerate(clients)]
    while asking[0][0] < end:
        office.clock.now, client = heapq.heappop(asking)
        grant = office.exchange(client, clients[client], asks=(100,) * 20)
        given[client] += len(grant.permits)
        heapq.heappush(asking, (office.clock.now + max(0.003, min(0.5, grant.ask_again_s)), client))
    return given


def test_clients_of_one_key_take_turns_and_use_the_budget_together() -> None:
    rate = Limits(requests_per_minute=600)
    given = permits_in(Office(), {"a": rate, "b": rate, "c": rate}, 60.0)
    assert sum(given.values()) == pytest.approx(600, rel=0.03)
    assert all(count == pytest.approx(200, rel=0.25) for count in given.values())


def test_the_strictest_rate_of_those_present_holds_for_all() -> None:
    loose, strict = Limits(requests_per_minute=6000), Limits(requests_per_minute=600, tokens_per_minute=10**9)
    office = Office()
    assert sum(permits_in(office, {"a": loose}, 10.0).values()) == pytest.approx(1000, rel=0.15)
    assert sum(permits_in(office, {"a": loose, "b": strict}, 20.0).values()) == pytest.approx(200, rel=0.15)
    office.exchange("b", strict, leaving=True)
    assert sum(permits_in(office, {"a": loose}, 10.0).values()) == pytest.approx(1000, rel=0.15)


def test_the_rate_of_a_client_that_falls_silent_ends_with_its_lease() -> None:
    loose, strict = Limits(requests_per_minute=6000), Limits(requests_per_minute=60)
    office = Office()
    office.exchange("b", strict)
    assert sum(permits_in(office, {"a": loose}, LEASE_S - 0.1).values()) < 10
    assert sum(permits_in(office, {"a": loose}, 10.0).values()) > 500


def test_a_client_without_a_rate_needs_permits_where_another_has_one() -> None:
    office = Office()
    assert not office.exchange("a", asks=(1,)).metered
    office.exchange("b", Limits(requests_per_minute=60))
    asked = office.exchange("a", asks=(1, 1, 1))
    assert (asked.metered, len(asked.permits)) == (True, 2)
    office.clock.now += LEASE_S
    assert not office.exchange("a").metered


def test_what_a_failed_call_reserved_is_given_back() -> None:
    office, rate = Office(), Limits(tokens_per_minute=600)
    assert office.exchange("a", rate, asks=(600,)).permits == (0.0,)
    assert office.exchange("b", rate, asks=(1,)).permits == ()
    assert len(office.exchange("b", rate, asks=(1,), corrections=((600, 0),)).permits) == 1


def test_a_new_client_learns_what_estimates_are_worth() -> None:
    office = Office()
    assert office.exchange("a").ratio == 1.0
    office.exchange("a", ratio=0.3)
    assert office.exchange("b").ratio == 0.3


def test_a_pause_is_told_to_every_client_until_it_is_over() -> None:
    office, rate = Office(), Limits(requests_per_minute=6000)
    office.exchange("a", pause_s=3.0)
    for passed in (0.0, 1.0, 2.5):
        office.clock.now = BEGAN + passed
        assert office.exchange("b").pause_s == pytest.approx(3.0 - passed)
    assert min(office.exchange("b", rate, asks=(1, 1)).permits) >= 0.5
    office.clock.now = BEGAN + 3.0
    assert office.exchange("c").pause_s == 0.0


def test_no_endpoint_can_stop_everybody_for_days() -> None:
    assert Office().exchange("a", pause_s=1e9).pause_s == LONGEST_PAUSE_S


# Concurrency


@dataclass
class Endpoint:
    """An endpoint that answers `takes` calls at once and says 429 to all others, and the actors that call it."""

    takes: int
    actors: dict[str, int]  # how many calls each can have in flight
    wants: int = 10**6
    now: float = BEGAN
    answered: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self.concurrency = Concurrency()
        self.lease = dict.fromkeys(self.actors, 0)
        self.told = dict.fromkeys(self.actors, Usage())
        self.sent: Counter[str] = Counter()

    def rounds(self, count: int, **troubles: Any) -> list[int]:
        """Rounds of calls of 50 ms, every actor's calls at once; returns what was in flight in each."""
        in_flight = []
        for _ in range(count):
            for name, most in self.actors.items():
                usage = self.told[name]._replace(want=self.wants, **troubles)
                self.lease[name], _ = self.concurrency.report(name, most, usage, self.now)
            room = self.takes
            for name, lease in self.lease.items():
                sent = min(lease, self.wants)
                done = min(sent, room)
                room -= done
                self.sent[name] += sent
                self.answered, self.refused = self.answered + done, self.refused + sent - done
                self.told[name] = Usage(done, sent, limited=done < sent, epoch=self.concurrency.epoch)
            in_flight.append(sum(min(lease, self.wants) for lease in self.lease.values()))
            self.now += 0.05
        return in_flight


def test_calls_in_flight_double_with_each_round_until_the_pool_is_full() -> None:
    assert Endpoint(10**6, {"a": 512}).rounds(6) == [START, 128, 256, 512, 512, 512]


def test_actors_together_double_what_they_have_together() -> None:
    together = Endpoint(10**6, {"a": 512, "b": 512}).rounds(8)
    assert together[-1] == 1024
    assert all(later <= 2 * before + 2 for before, later in pairwise(together))


@pytest.mark.parametrize("actors", [1, 2, 5])
@pytest.mark.parametrize("takes", [10, 100, 700])
def test_calls_in_flight_find_what_the_endpoint_takes(actors: int, takes: int) -> None:
    endpoint = Endpoint(takes, {f"actor {number}": 1000 for number in range(actors)})
    endpoint.rounds(100)
    endpoint.answered = endpoint.refused = 0
    endpoint.sent.clear()
    endpoint.rounds(400)
    assert endpoint.answered >= 0.85 * 400 * takes
    assert endpoint.refused <= 0.05 * endpoint.answered
    assert max(endpoint.sent.values()) <= 1.5 * min(endpoint.sent.values())


def test_an_episode_of_429s_cuts_once_and_ends_the_slow_start() -> None:
    concurrency = Concurrency()
    concurrency.report("a", 1000, Usage(want=1000), BEGAN)
    concurrency.report("a", 1000, Usage(100 - START, START, 1000), BEGAN)
    assert concurrency.limit == 100
    for _ in range(5):  # calls that began before the cut was known
        concurrency.report("a", 1000, Usage(want=1000, limited=True, epoch=0), BEGAN)
    assert concurrency.limit == pytest.approx(100 * CUT)
    concurrency.report("a", 1000, Usage(80, 80, 1000, epoch=1), BEGAN)
    assert concurrency.limit == pytest.approx(100 * CUT * (1 + GROWTH))


@pytest.mark.parametrize(
    "usage",
    [
        Usage(done=START, peak=START // 2, want=START // 2),
        Usage(done=START, peak=START, want=99, troubled=True),
        Usage(peak=START, want=99),
    ],
    ids=["not in use", "5xx or timeouts", "nothing answered"],
)
def test_what_does_not_let_the_limit_grow(usage: Usage) -> None:
    concurrency = Concurrency()
    concurrency.report("a", 1000, Usage(want=99), BEGAN)
    concurrency.report("a", 1000, usage, BEGAN)
    assert concurrency.limit == START


def test_trouble_does_not_shrink_the_limit() -> None:
    endpoint = Endpoint(10**6, {"a": 512})
    endpoint.rounds(3)
    before = endpoint.concurrency.limit
    endpoint.rounds(10, troubled=True, done=0)
    assert endpoint.concurrency.limit == before


def test_an_endpoint_that_only_refuses_is_left_alone_for_longer_and_longer() -> None:
    concurrency = Concurrency()
    concurrency.report("a", 64, Usage(want=64), BEGAN)
    pauses = [concurrency.report("a", 64, Usage(want=64, limited=True, epoch=cut), BEGAN)[1] for cut in range(12)]
    assert pauses[:5] == [0.0, 0.25, 0.5, 1.0, 2.0]
    assert pauses[-1] == 30.0
    assert concurrency.limit >= 1
    concurrency.report("a", 64, Usage(1, 1, 64, epoch=12), BEGAN)
    assert concurrency.report("a", 64, Usage(want=64, limited=True, epoch=12), BEGAN)[1] == 0.0


def test_an_actor_that_wants_little_leaves_the_rest_to_the_others() -> None:
    concurrency = Concurrency()
    for _ in range(3):
        quiet, _ = concurrency.report("quiet", 64, Usage(want=2), BEGAN)
        busy, _ = concurrency.report("busy", 64, Usage(want=64), BEGAN)
    assert (quiet, busy) == (3, START - 3)


def test_the_lease_of_an_actor_that_died_is_free_after_a_while() -> None:
    endpoint = Endpoint(10**6, {"a": START, "b": START})
    endpoint.rounds(1)
    concurrency = endpoint.concurrency
    shared = concurrency.report("a", START, Usage(want=START), endpoint.now)[0]
    alone = concurrency.report("a", START, Usage(want=START), endpoint.now + LEASE_S)[0]
    assert shared < alone == START


def test_without_any_actor_for_a_minute_all_begins_anew() -> None:
    endpoint = Endpoint(10**6, {"a": 512})
    endpoint.rounds(6)
    concurrency, left = endpoint.concurrency, endpoint.now
    concurrency.leave("a", left)
    assert concurrency.report("a", 512, Usage(want=512), left + FORGET_S - 1)[0] == 512
    concurrency.leave("a", left)
    assert concurrency.report("a", 512, Usage(want=512), left + FORGET_S)[0] == START


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.builds(Usage, *[st.integers(0, 200)] * 3, st.booleans(), st.booleans(), st.integers(0, 3)),
            st.floats(0, 6),
        ),
        max_size=60,
    )
)
def test_leases_never_exceed_the_limit_by_more_than_one_each(reports: list[tuple[str, Usage, float]]) -> None:
    concurrency, now = Concurrency(), BEGAN
    leases: dict[str, tuple[int, float]] = {}
    for name, usage, pause in reports:
        now += pause
        before = concurrency.limit
        lease, _ = concurrency.report(name, 100, usage, now)
        leases[name] = (lease, now + LEASE_S)
        leases = {name: (lease, until) for name, (lease, until) in leases.items() if until > now}
        assert 1 <= lease <= 100
        assert lease == 1 or sum(lease for lease, _ in leases.values()) <= concurrency.limit
        assert concurrency.limit <= max(before, 100 * len(leases))


# In a cluster


@ray.remote(num_cpus=0)
class Caller:
    """An actor with a model."""

    def __init__(self, url: str, rate: Limits) -> None:
        params = OpenAIChat.Params(engine="gpt-4", temperature=0, base_url=url)
        self._model = OpenAIChat(params.resolved(), Pool(max_concurrency=64), rate)

    async def ask(self, prompts: list[str]) -> list[str]:
        answers = await asyncio.gather(*(self._model.generate(Request(prompt)) for prompt in prompts))
        return [answer.text for answer in answers]


def governor_of(server: OpenAIServer) -> Any:
    return ray.get_actor(governor_name(f"{server.base_url} OPENAI_API_KEY"), namespace=NAMESPACE)


@pytest.mark.usefixtures("ray_cluster")
def test_actors_of_a_cluster_share_one_governor_whatever_their_rate() -> None:
    rates = [Rate(requests_per_minute=600), Rate(requests_per_minute=6000)]
    with OpenAIServer(answer=str.upper) as server:
        callers = [Caller.remote(server.base_url, rate) for rate in rates]
        ray.get([caller.ask.remote(["first"]) for caller in callers])  # both have started
        strict, loose = ([f"{number} {letter}" for number in range(15)] for letter in "ab")
        first, began = len(server.requests), time.monotonic()
        asking = [callers[0].ask.remote(strict)]
        while len(server.requests) == first:  # until the stricter rate is in force
            time.sleep(0.001)
        asking.append(callers[1].ask.remote(loose))
        answers = ray.get(asking)
        times = [(record.time - began, record.prompt_sha) for record in server.requests[first:]]
    assert answers == [[prompt.upper() for prompt in prompts] for prompts in (strict, loose)]
    last_of_strict = max(at for at, sha in times if sha in map(prompt_sha, strict))
    for count, (at, _) in enumerate(times):
        if at <= last_of_strict:  # it is in force until then; a call that comes late is no harm
            assert count <= 10 * (at + BURST_S)
    ray.kill(governor_of(server))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("rate", [Rate(), Rate(requests_per_minute=60_000)], ids=["adaptive", "rate"])
@pytest.mark.parametrize("for_good", [False, True], ids=["restarts", "gone"])
def test_callers_carry_on_when_their_governor_dies(rate: Limits, for_good: bool) -> None:
    prompts = [f"prompt {number}" for number in range(300)]
    with OpenAIServer(answer=str.upper, latency=0.05) as server:
        caller = Caller.remote(server.base_url, rate)
        assert ray.get(caller.ask.remote(["first"])) == ["FIRST"]
        asking = caller.ask.remote(prompts)
        ray.kill(governor_of(server), no_restart=for_good)
        assert ray.get(asking, timeout=120) == [prompt.upper() for prompt in prompts]
        assert ray.get(caller.ask.remote(["last"]), timeout=120) == ["LAST"]
        ray.kill(governor_of(server))
