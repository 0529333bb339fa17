"""The number of calls in flight, on a simulated clock: it grows to what the endpoint takes, and is shared fairly."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import BEGAN

from rambla_ray.actors.api.adaptive import CUT, FORGET_S, GROWTH, LEASE_S, START, Concurrency, Usage


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


def test_an_actor_is_short_until_those_who_hold_its_part_have_reported() -> None:
    concurrency = Concurrency()
    concurrency.report("first", START, Usage(want=START), BEGAN)
    assert not concurrency.is_short("first")
    assert concurrency.report("second", START, Usage(want=START), BEGAN)[0] == 1
    assert concurrency.is_short("second")
    concurrency.report("first", START, Usage(want=START), BEGAN)
    assert concurrency.report("second", START, Usage(want=START), BEGAN)[0] == START // 2
    assert not concurrency.is_short("second")


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
