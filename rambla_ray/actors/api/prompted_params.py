"""What params of several APIs share: how long an answer may be, and a system prompt."""

from __future__ import annotations

from rambla_ray.actors.api.endpoint_params import EndpointParams
from rambla_ray.actors.model import ASSUMED_ANSWER_TOKENS
from rambla_ray.tasks.closed import omitted
from rambla_ray.tasks.prompts import SystemPrompt


class LimitedParams(EndpointParams):
    """The longest answer, under the name that an API has for it."""

    @property
    def limit_name(self) -> str:
        """The member of a body, and the param, by which the longest answer is sent."""
        return "max_tokens"

    @property
    def longest_answer(self) -> int:
        """The limit that is sent; without any, what estimates and budgets take for one."""
        return self.sent_limit or ASSUMED_ANSWER_TOKENS

    @property
    def sent_limit(self) -> int | None:
        """The longest answer that requests ask for, in tokens."""
        limit = (self.extra_body or {}).get(self.limit_name, getattr(self, self.limit_name))
        return limit if type(limit) is int and limit > 0 else None

    @property
    def is_greedy(self) -> bool:
        temperature = getattr(self, "temperature", None)
        return bool((self.extra_body or {}).get("temperature", temperature) == 0)

    @property
    def remarks(self) -> tuple[str, ...]:
        if self.sent_limit is not None:
            return super().remarks
        note = f"engine {self.engine}: no longest answer is sent; estimates and budgets count {ASSUMED_ANSWER_TOKENS}"
        return (*super().remarks, f"{note} tokens for each (params.{self.limit_name} sets one)")


class PromptedParams(LimitedParams):
    """A system prompt for every request, beside the longest answer."""

    system: SystemPrompt | None = omitted("a system prompt; that of a task's stage takes its place")

    @property
    def takes_system_prompt(self) -> bool:
        return True

    @property
    def system_prompt(self) -> str:
        return self.system or ""
