"""A run's budget: what it has spent, what its calls in flight may cost, and whether one more fits.

What a call costs is known when it has ended. So what it may cost is reserved before it is sent, held while it is in
flight, and replaced by what it did cost. Two rules say whether a call is let out:

- *Covered*: the most that it may cost fits beside what is used and held. That is as many tokens as its prompt has
  bytes, what a chat template puts around it, and the longest answer that its model gives; in dollars, whatever becomes
  of the prompt in the endpoint's cache.
- *Trusted*: what it is likely to cost fits. One such call is in flight at a time. What is likely follows from what
  the model's calls in its role have cost so far; before that, a token has four bytes.

So the overshoot is at most what one call costs more than was likely. Proof: let u be what is used, h what is held, b
the budget. A grant keeps u + h <= b. A covered call that ends does not raise u + h, as it costs at most what was held
for it. A trusted one raises it by its miss m, from at most b, since no other was in flight; after that nothing is let
out before u + h + its own <= b. Therefore u <= b + m at any time. No rule lets more calls out: where those in flight
may cost more than b - u by more than one miss, a run in which they all do overshoots by more.

Where the budget is large, every call is covered and none waits. Towards its end, calls are let out as those before
them turn out to have cost less than they might.

A request takes several calls when attempts fail, or a second one races a slow one. An attempt that was not charged for
leaves its reservation to the next. After one that was, and for a call beside another, its owner asks for a further
reservation.

What is out of reach: a call that costs more than the most it may, as behind an endpoint that puts a text of its own
before each prompt, adds that to the overshoot, and from then on calls of its model and role reserve as much. What a
process was asking when it died may have been charged, and counts as nothing.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rambla_ray.actors.ledger_costs import CallCosts, Key
from rambla_ray.actors.model import Size
from rambla_ray.config.sections import Budget, Price
from rambla_ray.display import dollars
from rambla_ray.ledger.record import Record, peek
from rambla_ray.ledger.spent import Spent
from rambla_ray.schema import Tokens


class Holding(NamedTuple):
    """What an owner asks, and what it was charged for calls that gave no answer."""

    request_id: str
    role: str
    size: Size
    calls: int = 1  # How many are reserved: in flight, or about to be sent.
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Reservation(NamedTuple):
    """What is held for one call; `is_trusted` says that it is what the call is likely to cost, and not the most."""

    tokens: int
    usd: float
    is_trusted: bool = False


NO_RESERVATION = Reservation(0, 0.0)


@dataclass(slots=True)
class _Asked:
    """A request that an owner asks: what is held for its calls, and what those without an answer were charged."""

    key: Key
    size: Size
    reservations: list[Reservation] = field(default_factory=list)
    charged: Tokens = Tokens()  # noqa: RUF009 - it is a constant


class BudgetMeter:
    """Compares what was spent, and may be spent by what is in flight, with what may be spent.

    Args:
        budget: what the run may spend.
        prices: by (model config, role), what a model charges; None for one that charges nothing.
        spent: by (model config, role), what the run has spent so far; it changes while the run goes on.
        batched: (model config, role) whose requests are sent in batches at first, at the price of those.
        blind_s: for so many seconds it is not known yet what is in flight, as owners have still to say what they ask.

    Attributes:
        in_flight: how many calls hold a reservation.
    """

    def __init__(
        self,
        budget: Budget,
        prices: Mapping[Key, Price | None],
        spent: Mapping[Key, Spent],
        batched: Collection[Key] = (),
        blind_s: float = 0.0,
    ) -> None:
        self._budget, self._prices, self._spent, self._batched = budget, prices, spent, batched
        self._sees_at = time.monotonic() + blind_s
        self._costs = CallCosts(spent)
        self._asked: dict[tuple[str, str], _Asked] = {}  # By owner and request_id.
        self._unrecorded: dict[tuple[str, str], _Asked] = {}  # Charged and given up, before any record came.
        self._charged: dict[Key, Tokens] = {}  # What is in no record yet.
        self._silent: Key | None = None  # None of whose answers says what it cost.
        self._held_tokens, self._held_usd, self._trusted = 0, 0.0, 0
        self.in_flight = 0

    @property
    def is_set(self) -> bool:
        """Whether there is a budget."""
        return self._budget.is_set

    def offer(self, key: Key, size: Size, *, is_first: bool = True) -> Reservation | None:
        """What to reserve for one more call of a model in a role; None while none fits.

        Only the first call of a request is made in a batch: `is_first` is not set for those after or beside it.
        """
        if not self.is_set:
            return NO_RESERVATION
        if self._is_blind:
            return None
        in_batch = is_first and key in self._batched
        most = self._most(key, size, in_batch=in_batch)
        if self._fits(most):
            return most
        likely = self._likely(key, size, in_batch=in_batch)
        return likely if not self._trusted and self._fits(likely) else None

    def hold(self, owner: str, request_id: str, key: Key, size: Size, reservation: Reservation) -> None:
        """An owner makes a call of a request: its first, or another."""
        if not self.is_set:
            return
        asked = self._asked.setdefault((owner, request_id), _Asked(key, size))
        asked.reservations.append(reservation)
        self._held_tokens += reservation.tokens
        self._held_usd += reservation.usd
        self._trusted += reservation.is_trusted
        self.in_flight += 1

    def restore(self, owner: str, model: str, holding: Holding) -> None:
        """An owner says what it asks to a meter that may not know it: its service has started again, or held it to be
        dead."""
        place, key = (owner, holding.request_id), (model, holding.role)
        if not self.is_set or place in self._asked:
            return
        known = self._unrecorded.pop(place, None)
        asked = self._asked[place] = known or _Asked(key, holding.size)
        self._charge_to(asked, holding)
        most = self._most(key, holding.size)
        for _ in range(holding.calls):
            self.hold(owner, holding.request_id, key, holding.size, most)

    def charge(self, owner: str, holding: Holding) -> None:
        """A call gave no answer and was charged for; its request goes on, and has a record when it ends."""
        asked = self._asked.get((owner, holding.request_id))
        if asked is None:
            return
        self._costs.learn(asked.key, asked.size, self._charge_to(asked, holding))
        asked.reservations.sort(key=lambda reservation: reservation.is_trusted)
        while len(asked.reservations) > holding.calls:
            self._let_go(asked.reservations.pop())

    def recorded(self, owner: str, lines: Sequence[bytes]) -> None:
        """These records are among what was spent now, with all that their requests were charged."""
        if not self.is_set:
            return
        for line in lines:
            _, request_id, _ = peek(line)
            asked = self._asked.get((owner, request_id)) or self._unrecorded.pop((owner, request_id), None)
            if asked is not None:
                self._settle(asked, Record.from_line(line))
                self.drop(owner, request_id)

    def drop(self, owner: str, request_id: str) -> None:
        """An owner does not ask a request any more; what it was charged without a record stays counted."""
        asked = self._asked.pop((owner, request_id), None)
        if asked is None:
            return
        while asked.reservations:
            self._let_go(asked.reservations.pop())
        if any(asked.charged):
            self._unrecorded[owner, request_id] = asked

    def used(self) -> tuple[int, float]:
        """Tokens and US dollars so far; the latter of models that have a price."""
        tokens, usd = 0, 0.0
        for key, spent in self._spent.items():
            tokens += spent.prompt_tokens + spent.completion_tokens
            if price := self._prices.get(key):
                usd += price.total(spent.tokens_outside_batches, spent.tokens_in_batches)
        for key, charged in self._charged.items():
            tokens += charged.total
            if price := self._prices.get(key):
                usd += price.cost(*charged)
        return tokens, usd

    def exhausted(self) -> str:
        """One line that says which budget is spent, or cannot hold; empty while something is left of each."""
        if not self.is_set:
            return ""
        if self._silent is not None:
            model, role = self._silent
            return f"model {model} ({role}) does not say what its calls cost, so that no budget holds; use limit=N"
        tokens, usd = self.used()
        if self._budget.usd is not None and usd >= self._budget.usd:
            return f"the budget of ${self._budget.usd:g} is spent ({dollars(usd)})"
        if self._budget.tokens is not None and tokens >= self._budget.tokens:
            return f"the budget of {self._budget.tokens} tokens is spent ({tokens})"
        return ""

    def shortage(self, key: Key, size: Size, *, is_first: bool = True) -> str:
        """One line that says why a call that does not fit never will; empty while those in flight may leave room."""
        spent = self.exhausted()
        if spent or self.in_flight or self._is_blind:
            return spent
        tokens, usd = self.used()
        likely = self._likely(key, size, in_batch=is_first and key in self._batched)
        budget, (model, role) = self._budget, key
        if budget.usd is not None and usd + likely.usd > budget.usd:
            name, taken, cost = f"the budget of ${budget.usd:g}", dollars(usd), dollars(likely.usd)
        else:
            name, taken, cost = f"the budget of {budget.tokens} tokens", str(tokens), str(likely.tokens)
        if not tokens:
            return f"{name} does not bear a single call: one of model {model} ({role}) costs about {cost}"
        return f"{name} is spent ({taken}) but for less than a call costs: about {cost}, of model {model} ({role})"

    def describe(self) -> str:
        """How much of the budget is used, in words; empty without one."""
        tokens, usd = self.used()
        if self._budget.usd is not None:
            return f"{dollars(usd)} of ${self._budget.usd:g}"
        return f"{tokens} of {self._budget.tokens} tokens" if self._budget.tokens is not None else ""

    @property
    def _is_blind(self) -> bool:
        return time.monotonic() < self._sees_at

    def _fits(self, cost: Reservation) -> bool:
        """Whether a call of this cost stays within each budget; one that costs nothing does."""
        tokens, usd = self.used()
        wholes = (
            (cost.tokens, tokens + self._held_tokens, self._budget.tokens),
            (cost.usd, usd + self._held_usd, self._budget.usd),
        )
        return all(whole is None or not more or taken + more <= whole for more, taken, whole in wholes)

    def _most(self, key: Key, size: Size, *, in_batch: bool = False) -> Reservation:
        """What covers a call, also where the endpoint's cache makes its prompt dearer."""
        tokens, price = self._costs.most(key, size), self._prices.get(key)
        return Reservation(
            tokens.total, price.most(tokens.prompt, tokens.completion, in_batch=in_batch) if price else 0.0
        )

    def _likely(self, key: Key, size: Size, *, in_batch: bool = False) -> Reservation:
        """What a call is likely to cost."""
        tokens, price = self._costs.likely(key, size), self._prices.get(key)
        return Reservation(tokens.total, price.cost(*tokens, in_batch=in_batch) if price else 0.0, is_trusted=True)

    def _settle(self, asked: _Asked, record: Record) -> None:
        """A request has ended, and its record, which is counted, says what it cost in all."""
        self._count(asked.key, asked.charged, -1)
        asked.charged = Tokens()
        if record.response is None:
            return
        tokens = record.response.tokens
        self._costs.learn(asked.key, asked.size, tokens)
        if not any(tokens):
            self._count_unsaid(asked)

    def _count_unsaid(self, asked: _Asked) -> None:
        """An answer came that does not say what it cost: as much as is likely, where others have said it."""
        most = self._most(asked.key, asked.size)
        if not (most.tokens if self._budget.tokens is not None else most.usd):
            return
        if self._costs.is_known(asked.key):
            self._count(asked.key, self._costs.likely(asked.key, asked.size))
        else:
            self._silent = asked.key

    def _charge_to(self, asked: _Asked, holding: Holding) -> Tokens:
        """Count what a request was charged since this was last called; returns that."""
        before, asked.charged = asked.charged, Tokens(holding.prompt_tokens, holding.completion_tokens)
        cost = asked.charged.plus(before, -1)
        self._count(asked.key, cost)
        return cost

    def _count(self, key: Key, tokens: Tokens, times: int = 1) -> None:
        self._charged[key] = self._charged.get(key, Tokens()).plus(tokens, times)

    def _let_go(self, reservation: Reservation) -> None:
        """A call has ended."""
        self.in_flight -= 1
        self._held_tokens -= reservation.tokens
        self._trusted -= reservation.is_trusted
        self._held_usd = self._held_usd - reservation.usd if self.in_flight else 0.0
