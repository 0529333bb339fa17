"""A budget holds, whatever calls cost: what they may cost is reserved before they are sent."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_lines import rid

from rambla_ray.actors.ledger import LedgerService
from rambla_ray.actors.ledger_budget import BudgetMeter, Holding, Reservation
from rambla_ray.actors.ledger_costs import FRAME_TOKENS, Key
from rambla_ray.actors.model import Size
from rambla_ray.config.sections import Budget, Price
from rambla_ray.ledger.claims import Claim
from rambla_ray.ledger.record import Record
from rambla_ray.ledger.spent import Spent
from rambla_ray.schema import CallTrace, Response

RUN, KEY = "run", ("m", "target")
DOLLAR_A_TOKEN = Price(input_per_million=1e6, output_per_million=1e6)
PRICES = {KEY: DOLLAR_A_TOKEN, ("m", "judge"): Price(input_per_million=5e6, output_per_million=0), ("free", "x"): None}
SIZE: Size = (36, 100)  # At most 36 + FRAME_TOKENS + 100 = 200 tokens; before anything is known, 36 / 4 + 1 + 1.


def line(
    name: str, tokens: tuple[int, int], key: Key = KEY, failed: tuple[int, int] = (0, 0), hedged: int = 0
) -> bytes:
    trace = CallTrace(0.0, 1 + hedged, hedged, (), *failed)
    response = Response("yes", prompt_tokens=tokens[0], completion_tokens=tokens[1], trace=trace)
    return Record(rid(name), RUN, *key, response).to_line()


@dataclass
class Run:
    """A meter, and the ledger's sums that it reads."""

    budget: Budget
    spent: dict[Key, Spent] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.meter = BudgetMeter(self.budget, PRICES, self.spent)

    def ask(self, name: str, key: Key = KEY, size: Size = SIZE) -> Reservation | None:
        reservation = self.meter.offer(key, size)
        if reservation is not None:
            self.meter.hold("one", rid(name), key, size, reservation)
        return reservation

    def end(self, name: str, *tokens: int, key: Key = KEY, failed: tuple[int, int] = (0, 0), hedged: int = 0) -> None:
        written = line(name, (tokens[0], tokens[1]), key, failed, hedged)
        self.spent.setdefault(key, Spent()).add(Record.from_line(written))
        self.meter.recorded("one", [written])

    def granted(self, count: int) -> int:
        return sum(self.ask(f"{count} {number}") is not None for number in range(count))


@pytest.mark.parametrize(
    ("budget", "granted"),
    [
        (Budget(), 1000),
        (Budget(tokens=10), 0),
        (Budget(tokens=11), 1),  # It is likely to cost that.
        (Budget(tokens=199), 1),
        (Budget(tokens=200), 1),  # It cannot cost more. Nothing is left beside it.
        (Budget(tokens=211), 2),
        (Budget(tokens=400), 2),
        (Budget(tokens=10_000), 50),
        (Budget(usd=10_000), 50),
        (Budget(usd=10_000, tokens=611), 4),
        (Budget(tokens=10**9, usd=1e9), 1000),
    ],
)
def test_calls_are_let_out_as_long_as_the_most_that_they_may_cost_fits_and_one_more(
    budget: Budget, granted: int
) -> None:
    assert Run(budget).granted(1000) == granted


def test_as_calls_end_for_less_others_take_their_place_and_one_is_always_trusted() -> None:
    run = Run(Budget(tokens=430))
    assert run.granted(10) == 3
    run.end("10 0", 20, 5)
    assert run.granted(5) == 0  # 25 are used and 211 + 200 held.
    run.end("10 1", 20, 5)
    assert run.ask("next") == Reservation(200, 200.0)
    assert run.granted(5) == 0  # The trusted one is still out.
    run.end("10 2", 20, 5)
    run.end("next", 20, 5)
    run.spent[KEY].prompt_tokens += 305  # 25 are left.
    assert run.ask("likely") == Reservation(25, 25.0, is_trusted=True)
    run.end("likely", 20, 5)
    assert (run.ask("none"), run.meter.exhausted()) == (None, "the budget of 430 tokens is spent (430)")


@pytest.mark.parametrize(
    ("budget", "used", "expected"),
    [
        (
            Budget(tokens=5),
            0,
            "the budget of 5 tokens does not bear a single call: one of model m (target) costs about 11",
        ),
        (
            Budget(usd=0.0005),
            0,
            "the budget of $0.0005 does not bear a single call: one of model m (target) costs about $11.0000",
        ),
        (
            Budget(tokens=100),
            80,
            "the budget of 100 tokens is spent (80) but for less than a call costs: about 40, of model m (target)",
        ),
        (
            Budget(usd=100, tokens=1000),
            80,
            "the budget of $100 is spent ($80.0000) but for less than a call costs: about $40.0000, "
            "of model m (target)",
        ),
        (Budget(tokens=80), 80, "the budget of 80 tokens is spent (80)"),
        (Budget(usd=70), 80, "the budget of $70 is spent ($80.0000)"),
    ],
)
def test_what_does_not_fit_is_told_with_its_numbers_once_nothing_is_in_flight(
    budget: Budget, used: int, expected: str
) -> None:
    before = {KEY: Spent(answered=2, prompt_tokens=0, completion_tokens=used)} if used else {}
    run = Run(budget, before)
    assert run.meter.offer(KEY, SIZE) is None
    assert run.meter.shortage(KEY, SIZE) == expected
    if "is spent (80) but" in expected:
        run.meter.hold("one", rid("other"), KEY, SIZE, Reservation(20, 20.0))
        assert run.meter.shortage(KEY, SIZE) == ""  # It may leave room.


def test_what_is_free_is_never_kept_from_being_asked() -> None:
    spent = {KEY: Spent(answered=1, prompt_tokens=500)}
    assert Run(Budget(tokens=100), spent).ask("overlap", size=(0, 0)) == Reservation(0, 0.0)
    assert Run(Budget(usd=100), spent).ask("local", key=("free", "x")) == Reservation(200, 0.0)


def test_roles_of_one_model_have_their_own_prices() -> None:
    run = Run(Budget(usd=1000))
    assert (run.ask("a"), run.ask("b", ("m", "judge"))) == (Reservation(200, 200.0), Reservation(200, 500.0))
    run.meter.charge("one", Holding(rid("b"), "judge", SIZE, 0, 10, 90))
    assert run.meter.used() == (100, 50.0)


def test_a_call_that_was_charged_for_counts_at_once_and_only_once() -> None:
    run = Run(Budget(tokens=1000))
    run.ask("a")
    run.meter.charge("one", Holding(rid("a"), "target", SIZE, 0, 30, 40))
    assert (run.meter.used(), run.meter.in_flight) == ((70, 70.0), 0)
    run.ask("a")  # It is tried again.
    run.meter.charge("one", Holding(rid("a"), "target", SIZE, 0, 60, 80))
    run.meter.charge("one", Holding(rid("a"), "target", SIZE, 0, 60, 80))  # the same call, which Ray has sent twice
    run.ask("a")
    run.end("a", 30, 10, failed=(60, 80))
    assert (run.meter.used(), run.meter.in_flight) == ((180, 180.0), 0)


@pytest.mark.parametrize("is_late", [False, True])
def test_what_the_dead_were_charged_stays_counted_until_their_record_comes(is_late: bool) -> None:
    run = Run(Budget(tokens=1000))
    run.ask("a")
    run.meter.charge("one", Holding(rid("a"), "target", SIZE, 0, 30, 40))
    run.meter.drop("one", rid("a"))
    assert run.meter.used()[0] == 70
    run.meter.hold("two", rid("a"), KEY, SIZE, Reservation(200, 200.0))
    if not is_late:  # It is not dead after all, and tries again.
        run.meter.restore("one", "m", Holding(rid("a"), "target", SIZE, 0, 30, 40))
        assert (run.meter.used()[0], run.meter.in_flight) == (70, 1)
        run.end("a", 30, 10, failed=(30, 40))
        assert (run.meter.used()[0], run.meter.in_flight) == (110, 1)
    if is_late:
        run.end("a", 30, 10, failed=(30, 40))
        assert (run.meter.used()[0], run.meter.in_flight) == (110, 1)  # Another still asks it.


def test_an_endpoint_that_charges_more_than_a_call_may_cost_is_believed_from_then_on() -> None:
    run = Run(Budget(tokens=100_000))
    run.ask("a")
    run.end("a", 1000, 500)
    assert run.ask("b") == Reservation(1000 + 500, 1500.0)


@pytest.mark.parametrize(("first", "stopped"), [((0, 0), True), ((20, 5), False)])
def test_answers_that_do_not_say_what_they_cost_stop_a_run_unless_others_have(
    first: tuple[int, int], stopped: bool
) -> None:
    run = Run(Budget(tokens=100_000))
    run.ask("a")
    run.ask("b")
    run.end("a", *first)
    run.end("b", 0, 0)
    assert ("model m (target) does not say what its calls cost" in run.meter.exhausted()) is stopped
    assert run.meter.used()[0] == (0 if stopped else 50)


PER_CALL = st.tuples(st.integers(0, SIZE[0] + FRAME_TOKENS), st.integers(0, SIZE[1]))
EVENTS = st.lists(
    st.tuples(st.sampled_from(["ask", "ask", "answer", "charge", "race"]), st.integers(0, 30), PER_CALL), max_size=120
)
KEYS = list(PRICES)


@settings(max_examples=400, deadline=None)
@given(
    events=EVENTS,
    budget=st.builds(Budget, tokens=st.integers(1, 5000) | st.none(), usd=st.floats(1, 5000) | st.none()),
)
def test_a_run_exceeds_its_budget_by_what_one_call_costs_more_than_was_likely(
    events: list[tuple[str, int, tuple[int, int]]], budget: Budget
) -> None:
    """Any costs up to the most a call may, in any order, with attempts that fail and are charged for, and races."""
    run, names = Run(budget), iter(range(10**6))
    out: dict[str, list[Reservation]] = {}  # What is asked, and what each of its calls has reserved.
    charged: dict[str, tuple[int, int]] = {}
    miss_tokens, miss_usd = 0.0, 0.0

    def missed(key: Key, reservations: list[Reservation], tokens: tuple[int, int]) -> None:
        nonlocal miss_tokens, miss_usd
        price = PRICES[key]
        for reservation in reservations:
            if reservation.is_trusted:
                miss_tokens = max(miss_tokens, sum(tokens) - reservation.tokens)
                miss_usd = max(miss_usd, (price.cost(*tokens) if price else 0.0) - reservation.usd)

    for event, place, tokens in events:
        key = KEYS[place % len(KEYS)]
        if event == "ask" or not out:
            name = f"{key[0]} {key[1]} {next(names)}"
            if (reservation := run.ask(name, key)) is not None:
                out[name], charged[name] = [reservation], (0, 0)
            else:
                assert out or run.meter.shortage(key, SIZE)  # Nobody waits for ever.
        else:
            name = list(out)[place % len(out)]
            key = (name.split()[0], name.split()[1])
            reservations = out[name]
            if event == "race" or not reservations:
                if (reservation := run.ask(name, key)) is not None:
                    reservations.append(reservation)
            elif event == "charge":
                reservations.sort(key=lambda reservation: reservation.is_trusted)
                missed(key, [reservations.pop()], tokens)
                charged[name] = charged[name][0] + tokens[0], charged[name][1] + tokens[1]
                run.meter.charge("one", Holding(rid(name), key[1], SIZE, len(reservations), *charged[name]))
            else:
                missed(key, reservations, tokens)
                hedged = len(reservations) - 1
                run.end(name, *tokens, key=key, failed=charged.pop(name), hedged=hedged)
                del out[name]
        used_tokens, used_usd = run.meter.used()
        assert used_tokens <= (math.inf if budget.tokens is None else budget.tokens + miss_tokens)
        assert used_usd <= (math.inf if budget.usd is None else budget.usd + miss_usd + 1e-6)
        assert run.meter.in_flight == (sum(map(len, out.values())) if budget.is_set else 0)


def serve(body: Callable[[LedgerService], Awaitable[None]], folder: Path, budget: Budget) -> None:
    """A scenario with a service of its own, in this process."""

    async def whole() -> None:
        await body(LedgerService(str(folder), RUN, budget, PRICES))

    asyncio.run(whole())


async def claim(service: LedgerService, *names: str) -> list[Any]:
    return list(await service.claim("one", "m", [(rid(name), "target") for name in names], [SIZE] * len(names)))


async def grant(service: LedgerService, name: str) -> Any:
    """Wait as a client does."""
    while (granted := await service.wait("one", "m", rid(name), "target", SIZE)) == Claim.PENDING:
        pass
    return granted


@pytest.mark.parametrize("budget", [Budget(tokens=450), Budget(usd=450)], ids=["tokens", "usd"])
def test_a_budget_ends_a_run_which_goes_on_when_it_grows(tmp_path: Path, budget: Budget) -> None:
    async def spend(service: LedgerService) -> None:
        assert await claim(service, "a", "b", "c", "d") == [Claim.GRANTED] * 3 + [Claim.PENDING]
        waiting = [asyncio.create_task(grant(service, name)) for name in "def"]
        await asyncio.sleep(0)
        for name in "abc":
            await service.store("one", [line(name, (60, 20))])
        assert await waiting[0] == Claim.GRANTED  # 240 are used; nothing fits beside the 200 that it may cost.
        await service.store("one", [line("d", (60, 20))])
        assert await waiting[1] == Claim.GRANTED  # It is likely to cost 80.
        await service.store("one", [line("e", (60, 20))])
        assert await waiting[2] == Claim.DRAINING
        kind, message = (await service.progress())["stopped"]
        assert (kind, "is spent" in message, "but for less than a call costs: about " in message) == (
            "budget",
            True,
            True,
        )

    async def complete(service: LedgerService) -> None:
        assert await claim(service, *"abcde") == [line(name, (60, 20)) for name in "abcde"]
        assert (await service.progress())["stopped"] is None  # What is held already needs no budget.
        assert await claim(service, "f") == [Claim.DRAINING]

    async def larger(service: LedgerService) -> None:
        assert await claim(service, "f") == [Claim.GRANTED]

    serve(spend, tmp_path, budget)
    serve(complete, tmp_path, budget)
    serve(larger, tmp_path, Budget(tokens=10_000))


def test_a_retry_of_what_was_charged_waits_for_room_and_goes_before_the_run_ends(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        await service.register("one", "actor")
        assert await claim(service, "a", "b") == [Claim.GRANTED, Claim.GRANTED]
        assert not await service.charge("one", Holding(rid("a"), "target", SIZE, 0, 60, 90))
        again = asyncio.create_task(service.reserve("one", "m", Holding(rid("a"), "target", SIZE, 0, 60, 90)))
        await asyncio.sleep(0)
        assert not again.done()  # 150 are used, and b may cost 200.
        await service.store("one", [line("b", (60, 20))])
        assert await again is Claim.GRANTED
        await service.charge("one", Holding(rid("a"), "target", SIZE, 0, 120, 140))
        other = Holding(rid("a"), "target", SIZE, 0, 120, 140)
        assert await service.reserve("one", "m", other) is Claim.DRAINING
        assert (await service.progress())["budget"] == "340 of 400 tokens"

    serve(body, tmp_path, Budget(tokens=400))


def test_who_has_waited_longest_for_room_gets_it_and_all_know_when_the_run_stops(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        names = [f"a{number}" for number in range(300)]
        await claim(service, *names)
        waiting = [asyncio.create_task(grant(service, name)) for name in names[3:]]
        await asyncio.sleep(0)
        for name in names[:2]:
            await service.store("one", [line(name, (20, 20))])
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert done == {waiting[0]}
        await service.stop("interrupted", "interrupted")
        assert await asyncio.gather(*waiting) == [Claim.GRANTED] + [Claim.DRAINING] * 296

    serve(body, tmp_path, Budget(tokens=450))


def test_a_service_that_starts_again_is_told_what_is_in_flight(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        assert await service.heartbeat("one") is None  # It is to register.
        holdings = [Holding(rid("a"), "target", SIZE, 2), Holding(rid("b"), "target", SIZE, 0, 30, 20)]
        terms = await service.register("one", "actor", "m", [*holdings, Holding(rid("known"), "target", SIZE)])
        assert (terms.has_budget, await service.heartbeat("one")) == (True, False)
        assert (await service.progress())["budget"] == "90 of 540 tokens"
        assert await claim(service, "a", "c", "d") == [Claim.PENDING, Claim.GRANTED, Claim.PENDING]
        await service.store("one", [line("a", (30, 10), hedged=1)])
        assert await claim(service, "d") == [Claim.GRANTED]

    async def before(service: LedgerService) -> None:
        await claim(service, "known")
        await service.store("one", [line("known", (30, 10))])

    serve(before, tmp_path, Budget(tokens=540))
    serve(body, tmp_path, Budget(tokens=540))
