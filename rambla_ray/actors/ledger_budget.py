"""A run's budget: what it has spent, and whether one more call fits into what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rambla_ray.config.sections import Budget, Price
from rambla_ray.ledger.record import RARE_MARK, Record
from rambla_ray.ledger.spent import Spent

FIRST_CALLS = 8  # A budget bears so many calls at the same time before it is known what a call costs.


class BudgetMeter:
    """Compares what was spent with what may be spent.

    Args:
        budget: what the run may spend.
        prices: by (model config, role), what a model charges; None for one that charges nothing.
        spent: by (model config, role), what the run has spent so far; it changes while the run goes on.
    """

    def __init__(
        self,
        budget: Budget,
        prices: Mapping[tuple[str, str], Price | None],
        spent: Mapping[tuple[str, str], Spent],
    ) -> None:
        self._budget, self._prices, self._spent = budget, prices, spent
        self._price_of = {model: price for (model, _), price in prices.items()}
        # By model config, tokens that are in no record yet.
        self._prompt_tokens: Counter[str] = Counter()
        self._completion_tokens: Counter[str] = Counter()

    def charge(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """A call gave no answer and was charged for; its request goes on, and has a record when it ends."""
        self._prompt_tokens[model] += prompt_tokens
        self._completion_tokens[model] += completion_tokens

    def recorded(self, lines: Sequence[bytes]) -> None:
        """These records are among what was spent now, with all that their requests were charged."""
        for record in (Record.from_line(line) for line in lines if RARE_MARK in line):
            model, trace = record.model, record.trace  # None of it is known to a service that has started again.
            self._prompt_tokens[model] = max(0, self._prompt_tokens[model] - trace.failed_prompt_tokens)
            self._completion_tokens[model] = max(0, self._completion_tokens[model] - trace.failed_completion_tokens)

    def used(self) -> tuple[int, float]:
        """Tokens and US dollars so far; the latter of models that have a price."""
        used = [
            (self._prices.get(key), spent.prompt_tokens, spent.completion_tokens) for key, spent in self._spent.items()
        ]
        used += [
            (self._price_of.get(model), tokens, self._completion_tokens[model])
            for model, tokens in self._prompt_tokens.items()
        ]
        usd = sum(price.cost(prompts, answers) for price, prompts, answers in used if price is not None)
        return sum(prompts + answers for _, prompts, answers in used), usd

    def exhausted(self) -> str:
        """One line that says which budget is spent; empty while there is something left of each."""
        budget = self._budget
        if not budget.is_set:
            return ""
        tokens, usd = self.used()
        if budget.usd is not None and usd >= budget.usd:
            return f"the budget of ${budget.usd:g} is spent (${usd:.4f})"
        if budget.tokens is not None and tokens >= budget.tokens:
            return f"the budget of {budget.tokens} tokens is spent ({tokens})"
        return ""

    def affordable(self, in_flight: int) -> bool:
        """Whether one more call fits beside those in flight, if they cost what calls have cost so far.

        A single call is always made: that the budget is spent is known only when it is.
        """
        if not self._budget.is_set or not in_flight:
            return True
        tokens, usd = self.used()
        charged = sum(spent.answered for spent in self._spent.values())
        if not charged and tokens:  # Nothing was answered so far, and what failed was charged all the same.
            charged = sum(spent.failed for spent in self._spent.values())
        if not charged:
            return in_flight < FIRST_CALLS
        shares = ((tokens, self._budget.tokens), (usd, self._budget.usd))
        return all(used * (1 + (in_flight + 1) / charged) <= whole for used, whole in shares if whole is not None)

    def describe(self) -> str:
        """How much of the budget is used, in words; empty without one."""
        tokens, usd = self.used()
        if self._budget.usd is not None:
            return f"${usd:.4f} of ${self._budget.usd:g}"
        return f"{tokens} of {self._budget.tokens} tokens" if self._budget.tokens is not None else ""
