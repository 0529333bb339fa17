"""Claims: nobody asks what another asks, the dead keep nothing, and a suspect shares its process with no other."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from rambla_ray.ledger.claims import DEATHS, OWNER_SILENT_S, SUSPECT, Claim, Claims

REQUESTS = st.sampled_from("abcd")
GRANTS = (Claim.GRANTED, Claim.GRANTED_ALONE)


def claim(claims: Claims, owner: str, request: str) -> Claim:
    return claims.claim(owner, request, "m", "target")


@pytest.mark.parametrize(
    ("deaths", "expected"),
    [
        (0, [Claim.GRANTED, Claim.GRANTED]),
        (SUSPECT - 1, [Claim.GRANTED, Claim.GRANTED]),
        (SUSPECT, [Claim.GRANTED_ALONE, Claim.PENDING]),
        (DEATHS, [Claim.GIVEN_UP, Claim.GRANTED]),
        (DEATHS + 1, [Claim.GIVEN_UP, Claim.GRANTED]),
    ],
)
def test_deaths_decide_how_a_request_is_asked(deaths: int, expected: list[Claim]) -> None:
    claims = Claims({"a": deaths})
    assert [claim(claims, "one", "a"), claim(claims, "one", "b")] == expected


@pytest.mark.parametrize("how", ["ended", "released", "dead"])
def test_a_request_is_free_when_its_owner_no_longer_asks_it(how: str) -> None:
    claims = Claims()
    assert claim(claims, "one", "a") is Claim.GRANTED
    assert (claim(claims, "other", "a"), claims.owner_of("a"), claims.in_flight) == (Claim.PENDING, "one", 1)
    if how == "ended":
        claims.end("a")
    elif how == "released":
        assert claims.release("one", ["a", "b"]) == [("a", "m", "target")]
    else:
        assert claims.declare_dead("one") == [("a", "m", "target")]
    assert (claims.owner_of("a"), claims.in_flight) == (None, 0)
    assert claim(claims, "other", "a") is Claim.GRANTED


def test_what_another_run_asks_is_pending_until_nothing_new_is_asked() -> None:
    claims = Claims(asked_elsewhere={"a"}.__contains__)
    assert [claim(claims, "one", request) for request in "ab"] == [Claim.PENDING, Claim.GRANTED]
    claims.drain()
    assert claim(claims, "one", "a") is Claim.DRAINING


def test_what_another_asks_is_not_released_and_does_not_die_with_an_owner() -> None:
    claims = Claims()
    claim(claims, "one", "a")
    assert claims.release("other", ["a"]) == claims.declare_dead("other") == []
    assert claims.owner_of("a") == "one"


def test_an_owner_is_replaced_by_its_actors_next_life_alone() -> None:
    claims = Claims()
    assert claims.register("first", "actor", now=0.0) is None
    assert claims.register("first", "actor", now=1.0) is None  # the same call, which Ray has sent twice
    assert claims.register("other", "another actor", now=1.0) is None
    assert claims.register("second", "actor", now=2.0) == "first"
    assert claim(claims, "first", "a") is Claim.DRAINING
    assert (claim(claims, "other", "a"), claim(claims, "second", "b")) == (Claim.GRANTED, Claim.GRANTED)


@pytest.mark.parametrize(
    ("deaths", "others"), [(SUSPECT - 1, [Claim.GRANTED, Claim.GRANTED]), (SUSPECT, [Claim.PENDING, Claim.GRANTED])]
)
def test_owners_that_are_not_known_any_more_say_what_they_ask(deaths: int, others: list[Claim]) -> None:
    claims = Claims({"a": deaths})
    assert not claims.knows("one")
    claims.register("one", "actor", now=0.0)
    claims.restore("one", "a", "m", "target")
    claims.restore(
        "other", "a", "m", "target"
    )  # It was lent to both, by two lives of the service: the first holds it.
    assert (claims.knows("one"), claims.owner_of("a"), claim(claims, "third", "a")) == (True, "one", Claim.PENDING)
    assert [claim(claims, "one", "b"), claim(claims, "other", "c")] == others
    assert claims.declare_dead("one")[0] == ("a", "m", "target")


def test_what_the_dead_say_they_ask_stays_free() -> None:
    claims = Claims()
    claims.register("first", "actor", now=0.0)
    claims.register("second", "actor", now=0.0)
    claims.restore("first", "a", "m", "target")
    assert claim(claims, "second", "a") is Claim.GRANTED


@pytest.mark.parametrize(("now", "silent"), [(5.0 + OWNER_SILENT_S, False), (5.1 + OWNER_SILENT_S, True)])
def test_an_owner_that_does_not_call_is_silent(now: float, silent: bool) -> None:
    claims = Claims()
    claims.register("one", "actor", now=0.0)
    claims.heartbeat("one", now=5.0)
    assert claims.is_silent("one", now) is silent


class ClaimsOfARun(RuleBasedStateMachine):
    """Actors start, ask, answer, release, fall silent and die, beside a plain account of what they were granted."""

    owners = Bundle("owners")

    @initialize(deaths=st.dictionaries(REQUESTS, st.integers(0, DEATHS)), budget=st.integers(1, 6))
    def start(self, deaths: dict[str, int], budget: int) -> None:
        self.deaths = Counter(deaths)
        self.budget = budget
        self.claims = Claims(deaths)
        self.asked: dict[str, tuple[str, Claim]] = {}  # request → who was granted it, and how
        self.dead: set[str] = set()
        self.lives: Counter[str] = Counter()
        self.latest: dict[str, str] = {}  # actor → its latest owner

    def asked_by(self, owner: str) -> set[str]:
        return {request for request, (who, _) in self.asked.items() if who == owner}

    def bury(self, owner: str) -> None:
        lost = self.claims.declare_dead(owner)
        assert lost == [(request, "m", "target") for request, _, _ in lost]
        assert sorted(request for request, _, _ in lost) == sorted(self.asked_by(owner))
        for request, _, _ in lost:
            del self.asked[request]
            self.deaths[request] += 1

    @rule(target=owners, actor=st.sampled_from(["x", "y"]))
    def an_actor_starts(self, actor: str) -> str:
        self.lives[actor] += 1
        owner = f"{actor}{self.lives[actor]}"
        before = self.claims.register(owner, actor, now=0.0)
        assert before == self.latest.get(actor)
        self.latest[actor] = owner
        if before is not None:
            self.dead.add(before)
            self.bury(before)
        return owner

    @rule(owner=owners, request=REQUESTS)
    def claim(self, owner: str, request: str) -> None:
        is_affordable = len(self.asked) < self.budget
        claim = self.claims.claim(owner, request, "m", "target", is_affordable=is_affordable)
        holder = self.asked.get(request)
        if holder is not None:
            assert claim is Claim.PENDING
        elif self.claims.draining or owner in self.dead:
            assert claim is Claim.DRAINING
        elif len(self.asked) >= self.budget:
            assert claim is Claim.PENDING
        elif self.deaths[request] >= DEATHS:
            assert claim is Claim.GIVEN_UP
        elif self.deaths[request] >= SUSPECT:
            assert claim in (Claim.GRANTED_ALONE, Claim.PENDING)
        else:
            assert claim in (Claim.GRANTED, Claim.PENDING)
        if claim in GRANTS:
            self.asked[request] = (owner, claim)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.asked)))
        self.claims.end(request)
        del self.asked[request]

    @rule(request=REQUESTS)
    def an_answer_comes_late_from_a_dead_owner(self, request: str) -> None:
        self.claims.end(request)
        self.asked.pop(request, None)

    @rule(owner=owners, requests=st.lists(REQUESTS, max_size=3))
    def release(self, owner: str, requests: list[str]) -> None:
        released = {request for request, _, _ in self.claims.release(owner, requests)}
        assert released == self.asked_by(owner) & set(requests)
        for request in released:
            del self.asked[request]

    @rule(owner=consumes(owners))
    def an_owner_falls_silent(self, owner: str) -> None:
        self.claims.heartbeat(owner, now=0.0)
        assert self.claims.is_silent(owner, now=OWNER_SILENT_S + 1)
        self.bury(owner)

    @rule(budget=st.integers(1, 6))
    def the_budget_changes(self, budget: int) -> None:
        self.budget = budget

    @rule()
    @precondition(lambda self: sum(self.lives.values()) > 5)
    def the_run_is_stopped(self) -> None:
        self.claims.drain()

    @invariant()
    def nobody_asks_what_another_asks_and_nobody_else_is_named(self) -> None:
        if hasattr(self, "claims"):
            assert self.claims.in_flight == len(self.asked)
            assert {request: self.claims.owner_of(request) for request in "abcd"} == {
                request: self.asked[request][0] if request in self.asked else None for request in "abcd"
            }

    @invariant()
    def a_suspect_is_alone_in_its_process(self) -> None:
        for request, (owner, how) in getattr(self, "asked", {}).items():
            if self.deaths[request] >= SUSPECT:
                assert how is Claim.GRANTED_ALONE
            if how is Claim.GRANTED_ALONE:
                assert self.asked_by(owner) == {request}

    def teardown(self) -> None:
        """Whatever happened, all that is left is granted, ended or given up, if its owner goes on asking for it."""
        if not hasattr(self, "claims") or self.claims.draining:
            return
        for request in list(self.asked):
            self.claims.end(request)
        for owner in set(self.latest.values()) - self.dead:
            left = set("abcd")
            while left:
                claims = {request: claim(self.claims, owner, request) for request in sorted(left)}
                ended = {request for request, granted in claims.items() if granted in (*GRANTS, Claim.GIVEN_UP)}
                assert ended
                for request in ended:
                    self.claims.end(request)
                left -= ended


ClaimsOfARun.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestClaimsOfARun = ClaimsOfARun.TestCase
