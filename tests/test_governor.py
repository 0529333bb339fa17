"""The governor, on a simulated clock: its clients take turns, share one budget, and wait together.

Its death is a real one, in a real cluster.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import ray
from openai_server import OpenAIServer, prompt_sha
from virtual_time import BEGAN

from rambla_ray.actors.api.adaptive import LEASE_S, Usage
from rambla_ray.actors.api.governor import SHORT_S, Governor, Grant, Report
from rambla_ray.actors.api.governor_client import NAMESPACE, governor_name
from rambla_ray.actors.api.rate_budget import BURST_S, Limits
from rambla_ray.actors.api.waits import LONGEST_WAIT_S
from rambla_ray.actors.openai import OpenAIChat
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.schema import Request


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


def test_a_client_whose_part_others_hold_asks_again_soon() -> None:
    office = Office()
    asked_again = [office.exchange(client, usage=Usage(want=64)).ask_again_s for client in ("a", "b", "a", "b")]
    assert asked_again == [0, SHORT_S, 0, 0]


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
    assert Office().exchange("a", pause_s=1e9).pause_s == LONGEST_WAIT_S


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
